"""The real thing on a real Ray cluster of several nodes: `synergy submit recipe=two_stage cluster=ray`, with a node killed in
mid-stage and another that joins late. LLaMA-Factory, verl, vLLM and VLMEvalKit run on its nodes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray_cluster
from test_end_to_end import SMALL, entries
from test_strategies import config

from synergy import paths
from synergy.driver import plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = [
    "recipe=two_stage",
    *SMALL,
    "data.sizes={train: 48, val: 8, bench: 4}",
    "evaluate.runs=1",
    "sft.config.num_train_epochs=1",
    "budget.rl_steps=5",
    "run.verify=false",  # its forward passes have tests of their own (test_forward.py)
    "run.retries=3",
    "+cluster.stages.evaluate.gpus=0",  # any node, the head too: beside the training
    "rl.module=verl_fork",  # all nodes are this machine, and their processes forks of one
]


def test_a_recipe_survives_a_node_that_is_killed_and_uses_one_that_joins_late(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with ray_cluster.local() as cluster:
        argv = [sys.executable, "-m", "synergy.submit", "cluster=ray", f"cluster.address={cluster.address}"]
        first = cluster.add(1)
        told = (tmp_path / "told.txt").open("w")
        child = subprocess.Popen(
            [*argv, f"run.dir={root}", *WORDS], stdout=told, stderr=subprocess.STDOUT, cwd=paths.PACKAGE.parent
        )
        try:
            while not list(root.glob("stages/rl-*/work/checkpoints/global_step_2/data.pt")):
                assert child.poll() is None, (tmp_path / "told.txt").read_text()
                time.sleep(0.1)
            cluster.kill(first)
            time.sleep(5.0)
            cluster.add(1)
            code = child.wait(timeout=600)
        finally:
            child.kill()
    log = (tmp_path / "told.txt").read_text()
    assert code == 0, log
    made = entries(root)
    assert {"sft", "two_stage", "eval-base", "eval-sft", "eval-two_stage"} <= set(made)
    rl = made["two_stage"]
    assert rl.attempt == 2 and rl.figures["steps"] == 5
    retried = (root / rl.output).parent / "attempt-1/retried.txt"
    assert "a Ray node was lost" in retried.read_text()
    metrics = [json.loads(line) for line in (root / rl.output).parent.joinpath("attempt-2/verl_metrics.jsonl").open()]
    assert min(row["step"] for row in metrics if "critic/score/mean" in row["data"]) >= 2, (
        "it went on from its checkpoint"
    )
    here = plan.of_config(config("two_stage", *WORDS[1:], f"run.dir={root}"))
    assert [step.action for step in here.steps] == ["reuse"] * len(here.steps), "the same keys as on one machine"
    assert re.search(r"synergy job logs synergy-two-stage-\w+", log)

"""The real thing on a real Ray cluster of several nodes: `synergy submit recipe=two_stage cluster=ray`, with a node killed in
mid-stage and another that joins late; and `recipe=rl` over two nodes, whose cluster is lost, head and all. LLaMA-Factory, verl,
vLLM and VLMEvalKit run on its nodes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray_cluster
from test_end_to_end import SMALL, entries
from test_strategies import config

from synergy import paths
from synergy.driver import plan
from synergy.driver.ledger import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

WORDS = [
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


class Submitted:
    """`synergy submit` of a recipe to a cluster, until something happened or its end."""

    def __init__(self, cluster: ray_cluster.Local, recipe: str, folder: Path, *words: str) -> None:
        self.root, self.told = folder / "run", folder / f"told-{cluster.gcs.replace(':', '-')}.txt"
        argv = [sys.executable, "-m", "synergy.submit", "cluster=ray", f"cluster.address={cluster.address}"]
        argv += [f"recipe={recipe}", f"run.dir={self.root}", *WORDS, *words]
        with self.told.open("w") as file:
            self.child = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, cwd=paths.PACKAGE.parent)

    def wait_for_checkpoint(self) -> None:
        self.wait(lambda: bool(list(self.root.glob("stages/rl-*/work/checkpoints/global_step_2/data.pt"))))

    def wait(self, happened: Callable[[], bool]) -> None:
        while not happened():
            assert self.child.poll() is None, self.told.read_text()
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        try:
            return self.child.wait(timeout=1800), self.told.read_text()
        finally:
            self.child.kill()


def went_on(root: Path, rl: Entry) -> bool:
    """Whether RL's second attempt went on from its checkpoint."""
    file = (root / rl.output).parent / "attempt-2/verl_metrics.jsonl"
    metrics = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [row["step"] for row in metrics if "critic/score/mean" in row["data"]]
    return rl.attempt == 2 and rl.figures["steps"] == 5 and min(steps) >= 2


def actions(recipe: str, root: Path) -> dict[str, str]:
    """Of the recipe's stages, as one machine plans them: the keys are the same there."""
    here = plan.of_config(config(recipe, *WORDS, f"run.dir={root}"))
    return {step.stage.name: step.action for step in here.steps}


def test_a_recipe_survives_a_node_that_is_killed_and_uses_one_that_joins_late(tmp_path: Path) -> None:
    with ray_cluster.local() as cluster:
        first = cluster.add(1)
        sent = Submitted(cluster, "two_stage", tmp_path)
        try:
            sent.wait_for_checkpoint()
            cluster.kill(first)
            time.sleep(5.0)
            cluster.add(1)
        finally:
            code, log = sent.end()
    assert code == 0, log
    made = entries(sent.root)
    assert {"sft", "two_stage", "eval-base", "eval-sft", "eval-two_stage"} <= set(made)
    assert went_on(sent.root, made["two_stage"])
    retried = (sent.root / made["two_stage"].output).parent / "attempt-1/retried.txt"
    assert "a Ray node was lost" in retried.read_text()
    assert set(actions("two_stage", sent.root).values()) == {"reuse"}
    assert re.search(r"synergy job logs synergy-two-stage-\w+", log)


def test_a_run_over_two_nodes_whose_cluster_is_gone_head_and_all_goes_on_in_the_next(tmp_path: Path) -> None:
    with ray_cluster.local(1, 1) as cluster:
        lost = Submitted(cluster, "rl", tmp_path, "cluster.nodes=2")
        try:
            lost.wait_for_checkpoint()
        finally:
            cluster.lose()
            code, log = lost.end()
    assert code not in (0, None) and "Traceback" not in log, log
    assert "rl" not in entries(lost.root)
    with ray_cluster.local(1, 1) as cluster:
        late = Submitted(cluster, "rl", tmp_path, "cluster.nodes=2")
        try:
            late.wait(lambda: "rl" in entries(late.root))  # what it evaluates to is not the question
        finally:
            cluster.lose()
            late.end()
    made = entries(lost.root)["rl"]
    assert went_on(lost.root, made) and actions("rl", lost.root)["rl"] == "reuse"
    native = ((lost.root / made.output).parent / "attempt-2/log.txt").read_text()
    assert len(set(re.findall(r"WorkerDict pid=(\d+)", native))) == 2

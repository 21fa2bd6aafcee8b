"""SFT and RL in one step by real verl: SFT on all questions; traces that wait, with a kill between; steps of SFT alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import _lines, _wait_for, argv, entries, run

from synergy import paths
from synergy.stages import rl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORDS = [
    "data.sizes={train: 48, val: 8, bench: 4}",
    "evaluate.runs=1",
    "rl.verl.actor_rollout_ref.rollout.n=2",
    "run.keep_work=true",
]
SIZE, STEPS, SAVED = 3, 12, 3
WAIT = [
    "recipe=interleaved",
    "recipe.granularity=step",
    f"recipe.sft_buffer={SIZE}",
    "recipe.pass_rate=0.99",  # only questions that are always right take RL
    "rl.verl.data.train_batch_size=2",
    "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=1",
    f"budget.rl_steps={STEPS}",
    f"rl.verl.trainer.save_freq={SAVED}",
]


def native(folder: Path) -> dict[int, dict[str, Any]]:
    """verl's own metrics of each step, those of the last attempt that took it."""
    files = sorted(folder.glob("attempt-*/verl_metrics.jsonl"))
    rows = (json.loads(line) for file in files for line in _lines(file))
    return {row["step"]: row["data"] for row in rows if "actor/grad_norm" in row["data"]}


def test_no_waiting_trace_is_lost_or_used_twice_by_a_kill(tmp_path: Path) -> None:
    driver = subprocess.Popen(argv(tmp_path, *WORDS, *WAIT), stdout=subprocess.DEVNULL, cwd=paths.PACKAGE.parent)
    first = "stages/rl-*/attempt-1/verl_metrics.jsonl"
    _wait_for(tmp_path, first, ready=lambda file: len(_lines(file)) >= SAVED + 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=180)
    run(tmp_path, *WORDS, *WAIT)
    made = entries(tmp_path)
    folder = (tmp_path / made["interleaved"].output).parent
    assert made["interleaved"].attempt == 2 and made["traced"].figures["traces_too_long"] == 0
    right = defaultdict[tuple[int, str], int](int)
    for row in rl.rollouts(folder / "work/rollouts"):
        right[row["step"] + 1, row["id"]] += row["acc"] > 0.5
    assert len(right) == STEPS * 2, "two questions a step"
    rows, went = native(folder), 0
    assert 1 in rows and STEPS in rows
    for step in sorted(rows):
        if step - 1 in rows or step == 1:
            before = rows[step - 1]["synergy/sft_waiting"] if step > 1 else 0
            found = sum(count < 2 for (at, _), count in right.items() if at == step)
            now = rows[step]
            assert before + found == now["synergy/sft_traces"] + now["synergy/sft_waiting"], step
            assert now["synergy/sft_waiting"] < SIZE
            went += now["training/rollout_probs_diff_valid"] == 0
    assert went, "a step in which no rollout took RL"
    told = [json.loads(line) for line in _lines(folder / "attempt-2/metrics.jsonl")]
    assert told[-1]["step"] == STEPS and any(row["sft_waiting"] for row in told)
    assert any(row["sft_tokens"] == 0 for row in told) and any(row["sft_loss"] > 0 for row in told if row["sft_tokens"])
    assert all(row["empty_share"] < 0.1 for row in told), "rows without a loss cost next to nothing"


def test_sft_on_all_questions_beside_grpo(tmp_path: Path) -> None:
    words = ["recipe=ablation/interleaved_step_all", "budget.rl_steps=2", "rl.verl.trainer.save_freq=2"]
    run(tmp_path, *WORDS, *words)
    made = entries(tmp_path)["interleaved"]
    counted = [json.loads(line) for line in _lines(tmp_path / made.output / "passes.jsonl")]
    assert len(counted) == 16 and all(row["n"] == 2 for row in counted), "a trace is no response of the policy"
    for step, data in native((tmp_path / made.output).parent).items():
        assert data["synergy/sft_traces"] == 8 and data["actor/sft_tokens"] == data["synergy/sft_tokens"], step
        assert data["synergy/empty_share"] == 0 and data["actor/sft_nll"] > 0

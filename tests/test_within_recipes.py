"""SFT and RL in one step: what the recipes plan and refuse, what the data bring, and both for real."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from test_conformance import pythons
from test_rounds import build, counts, ten_questions
from test_strategies import plan

from synergy import lab, paths
from synergy.driver import handoff, ledger
from synergy.errors import UserError
from synergy.stages import rl, within_step

STEP = "recipe.granularity=step"
NAME = "within_step"
PROGRAM = paths.ROOT / "launch/plugins/verl_config.py"


def test_a_recipe_by_steps_is_one_stage_of_rl() -> None:
    stages = plan("interleaved", STEP, "recipe.sft_weight=0.5")
    assert list(stages)[-3:] == ["traced", "interleaved", "eval-interleaved"] and "passes" not in stages
    made = {"sft_weight": 0.5, "copies": 8, "baseline": "group", "pass_rate": 0.0, "begun": False}
    assert stages["interleaved"].settings["within_step"] == made
    other = plan("progressive", STEP, "recipe.prefix_rollouts=3", "recipe.baseline=alike", "recipe.schedule=cosine")
    assert list(other)[-5:] == ["order", "passes", "prefixed", "progressive", "eval-progressive"]
    assert other["prefixed"].settings["within_step"] == {"schedule": "cosine", "unit": "tokens"}
    made = {"sft_weight": 0.2, "copies": 3, "baseline": "alike", "pass_rate": 0.0, "begun": True}
    assert other["progressive"].settings["within_step"] == made
    assert other["passes"] == plan("progressive")["passes"], "shared with the rounds"


def test_the_ablation_by_steps_is_a_row_more_of_each_question() -> None:
    stages = plan("ablation/interleaved_step_all")
    assert stages["traced"].settings["within_step"] == {"rollouts": 8}
    setting = stages["interleaved"].settings
    assert setting["within_step"]["every"] and setting["within_step"]["copies"] == 1
    assert setting["verl"]["actor_rollout_ref"]["rollout"]["n"] == 8
    told = within_step.verl_overrides(setting, Path("model"), Path("work"))
    assert told["actor_rollout_ref.rollout.n"] == 9 and told["++trainer.v1.sampler.sampler_kwargs.every"] is True


def test_the_papers_settings_hold_by_steps() -> None:
    """verl's own configuration composes with the recipe's keys and the plug-ins', and none of ours replaces one of the paper's
    but rollout.n, which counts the trace."""
    words = ["scale=qwen2_5_vl_3b", "data.source=/data", "model.revision=main", STEP]
    words += ["evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"]
    for recipe, more in (("interleaved", []), ("interleaved", ["recipe.sft_on=all"]), ("progressive", [])):
        stage = plan(recipe, *words, *more)[recipe]
        rl.check(stage, pythons())
        told = within_step.verl_overrides(stage.settings, Path("/model"), Path("/work"))
        argv = rl.overrides(stage.settings) + [rl.override(key, value) for key, value in told.items()]
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *argv], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        made = yaml.safe_load(done.stdout)
        actor, rollout = (made["actor_rollout_ref"][part] for part in ("actor", "rollout"))
        assert (made["data"]["train_batch_size"], actor["ppo_mini_batch_size"], actor["kl_loss_coef"]) == (
            128,
            64,
            0.005,
        )
        assert (actor["optim"]["lr"], rollout["n"], made["algorithm"]["adv_estimator"]) == (1e-6, 8 + bool(more), NAME)
        assert (actor["policy_loss"]["loss_mode"], made["algorithm"]["rollout_correction"]) == (NAME, None)
        assert 64 * rollout["n"] % 8 == 0, "mini-batches of eight GPUs"


def test_plain_rl_keeps_its_key_and_each_knob_makes_another() -> None:
    settings = dict(plan("interleaved", STEP)["interleaved"].settings)
    known = rl.identity(settings)
    assert rl.identity({k: v for k, v in settings.items() if k != "within_step"}) == rl.identity(
        plan("rl")["rl"].settings
    )
    for knob in ("sft_weight=2", "pass_rate=0.5", "trace_counts=one", "sft_on=all", "sft_buffer=8"):
        assert rl.identity(plan("interleaved", STEP, f"recipe.{knob}")["interleaved"].settings) != known


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("interleaved", ["rl.verl.algorithm.adv_estimator=gae"], r"adv_estimator is gae.*critic.*granularity=round"),
        ("progressive", ["rl.verl.algorithm.adv_estimator=gae"], r"adv_estimator is gae"),
        ("interleaved", ["rl.verl.algorithm.adv_estimator=rloo"], r"adv_estimator is rloo"),
        ("interleaved", ["+rl.verl.algorithm.filter_groups.enable=true"], r"filter_groups\.enable=True"),
        ("interleaved", ["+rl.verl.actor_rollout_ref.actor.policy_loss.loss_mode=gspo"], r"loss_mode=gspo.*vanilla"),
        ("interleaved", ["rl.verl.actor_rollout_ref.actor.strategy=megatron"], r"strategy=megatron.*fsdp or fsdp2"),
        ("interleaved", ["+rl.verl.trainer.v1.trainer_mode=separate_async"], r"trainer_mode=separate_async"),
        ("interleaved", ["rl.verl.trainer.v1.sampler.custom_sampler.name=Mine"], r"custom_sampler\.name=Mine"),
        (
            "interleaved",
            ["+rl.verl.algorithm.rollout_correction.rollout_is=token"],
            r"rollout_correction\.rollout_is=token",
        ),
        ("interleaved", ["recipe.sft_on=none"], r"sft_on='none' is one of zero_pass, all"),
        (
            "interleaved",
            ["recipe.sft_on=all", "recipe.sft_buffer=4"],
            r"sft_on=all gives every question.*sft_buffer at 0",
        ),
        ("interleaved", ["recipe.sft_on=all", "recipe.pass_rate=0.5"], r"leave recipe\.pass_rate"),
        ("interleaved", ["recipe.sft_buffer=-1"], r"sft_buffer=-1"),
        ("interleaved", ["recipe.pass_rate=1"], r"pass_rate=1"),
        ("interleaved", ["recipe.trace_counts=two"], r"trace_counts='two'"),
        ("interleaved", ["recipe.sft_weight=0"], r"sft_weight=0\.0: a number above 0"),
        ("progressive", ["recipe.baseline=none"], r"baseline='none'"),
        ("progressive", ["recipe.granularity=epoch"], r"granularity='epoch' is one of round, step"),
    ],
)
def test_what_cannot_hold_is_refused_before_any_work(recipe: str, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan(recipe, STEP, *words)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return ten_questions(tmp_path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row["extra_info"] for row in pq.read_table(folder / "rl/train.parquet").to_pylist()]


def built(folder: Path, place: Path, **spec: Any) -> tuple[int, Path]:
    whole = {"part": "within_step", "room": 40, "within_step": {}, "steps": 5}
    return build(folder, place, **{**whole, **spec})


def test_rows_bring_their_traces(tmp_path: Path, questions: Path) -> None:
    code, out = built(tmp_path / "one", questions)
    assert code == 0
    found = {row["id"]: row["trace"] for row in rows_of(out)}
    assert found["q1"] == "<think>1 plus 1</think>\\boxed{3}" and found["q9"] == "" and len(found) == 10
    figures = json.loads((out / "figures.json").read_text())
    assert (figures["rl_rows"], figures["traces"], figures["traces_missing"], figures["traces_too_long"]) == (
        10,
        9,
        1,
        0,
    )
    assert "__rollout_n__" not in pq.read_table(out / "rl/train.parquet").column_names
    _, more = built(tmp_path / "all", questions, within_step={"rollouts": 8})
    assert set(pq.read_table(more / "rl/train.parquet")["__rollout_n__"].to_pylist()) == {8} and rows_of(
        more
    ) == rows_of(out)
    built(tmp_path / "rl", questions, part="round", prefix=0.0)
    order = [json.loads((tmp_path / name / "out/order.json").read_text()) for name in ("one", "rl")]
    assert order[0] == order[1], "plain RL's order"


def test_prefixes_fall_from_step_to_step(tmp_path: Path, questions: Path) -> None:
    passes = counts(tmp_path / "p.jsonl", {f"q{i}": 0 if i < 9 else 3 for i in range(10)})
    told = {"schedule": "linear", "unit": "tokens"}
    code, out = built(tmp_path / "one", questions, within_step=told, passes=[str(passes)], prefix_rollouts=2)
    rows = rows_of(out)
    assert code == 0 and all(row["prefix_rollouts"] == 2 for row in rows)
    lengths = [len(row["prefix"]) for row in rows if row["id"] != "q9"]
    assert all(a >= b for a, b in zip(lengths, lengths[2:], strict=False)) and lengths[-1] == 0
    assert [row["whole"] for row in rows if row["id"] != "q9"][:2] == [True, True] and not any(
        r["whole"] for r in rows[2:]
    )
    assert all(row["prefix"] == "" for row in rows if row["id"] == "q9"), "solved by the base model"


def test_without_a_trace_that_fits_it_is_one_message(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built(tmp_path / "m", questions, room=5)[0] == 2
    assert "all 9 are longer than lengths.rl=5" in capsys.readouterr().out


def test_figures_of_a_step_are_told() -> None:
    whole = within_step.figures({"synergy/prefix": 1.0})
    assert math.isnan(whole["reward"]) and math.isnan(whole["length"]), (
        "what verl means over the traces is told as nothing"
    )
    data = {"synergy/reward": 0.5, "synergy/zero_pass": 0.25, "actor/sft_nll": 6.0, "actor/sft_tokens": 3.0, "x": 1}
    assert within_step.figures(data) == {"reward": 0.5, "zero_pass": 0.25, "sft_loss": 2.0}
    assert within_step.figures({"critic/score/mean": 1.0}) == {}


# The real thing -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_both_recipes_train_by_steps(tmp_path: Path) -> None:
    words = ["data.sizes={train: 48, val: 8, bench: 4}", "evaluate.runs=1", "sample.n=1", "budget.rl_steps=3"]
    words += ["rl.verl.data.train_batch_size=8", "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    words += ["rl.verl.actor_rollout_ref.rollout.n=2", "rl.verl.trainer.save_freq=3", STEP]
    argv = [sys.executable, "-m", "synergy.run", "-m", f"run.dir={tmp_path}", "recipe=interleaved,progressive", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    made = {entry.name: entry for entry in ledger.read(tmp_path / "ledger.jsonl").values()}
    for recipe in ("interleaved", "progressive"):
        folder = (tmp_path / made[recipe].output).parent
        rows = [json.loads(line) for line in next(folder.glob("attempt-*/metrics.jsonl")).read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3] and all(0 <= row["reward"] <= 1 for row in rows)
        assert handoff.count_changed(tmp_path / made[recipe].output, lab.BASE) > 0
        with_sft = [row for row in rows if row["sft_tokens"]]
        assert with_sft and all(row["sft_loss"] > 0 for row in with_sft)
        if recipe == "interleaved":
            assert any(0 < row["zero_pass"] < 1 for row in rows) and all(row["prefix"] == 0 for row in rows)
            assert all((row["sft_tokens"] > 0) == (row["zero_pass"] > 0) for row in rows)
        else:
            assert rows[0]["prefix"] > 0 and "reward_begun" not in rows[0], "whole traces: nothing is generated"
            assert rows[1]["reward_begun"] >= 0 and rows[2]["prefix"] == 0 == rows[2]["sft_tokens"]
    counted = [
        json.loads(line) for line in (tmp_path / made["interleaved"].output / "passes.jsonl").read_text().splitlines()
    ]
    assert all(row["n"] % 2 == 0 for row in counted), "a trace is no response of the policy"

"""Disk space: what a stage is said to need is what it writes; a running stage stops before the disk is full; a full one costs
nothing that is published. On a real small file system where the tests may mount one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import save_tensors
from test_driver import QUIET, Script
from test_strategies import config

from synergy import stages, strategies
from synergy.driver import disk, execute, identity, ledger, plan
from synergy.driver.execute import Limits
from synergy.driver.externals import External
from synergy.driver.plan import Plan, Step, Workspace
from synergy.errors import StageFailed
from synergy.stages import Job, Progress, Stage

MB = 1_000_000


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB."""
    place, libc = tmp_path / "small", ctypes.CDLL(None, use_errno=True)
    place.mkdir()
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=100m") != 0:
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    libc.umount2(str(place).encode(), 2)


def base(folder: Path, count: int, dtype: str = "F32") -> Path:
    """A checkpoint of so many numbers."""
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", {"model.w": np.zeros(count, "<f4" if dtype == "F32" else "<u2")}, dtype)
    return folder


def todo(root: Path, model: Path, *planned: Stage) -> Plan:
    space = Workspace(root)
    return Plan(
        "test", plan.make(list(planned), {"base": External(model, identity.digest(model))}, space, {}), space, {}
    )


def trained(name: str, script: str, model: str = "base") -> Stage:
    settings = {"script": script, "config": {"num_train_epochs": 1}}
    return Stage(name, "sft", settings, {"base": "base", "model": model})


class Trainer(Script):
    """A shell script that writes native checkpoints where LLaMA-Factory does."""

    IDENTITY = frozenset({"script", "config"})

    def resume_point(self, job: Job) -> int | None:
        whole = [int(p.parent.name.split("-")[1]) for p in job.work.glob("out/checkpoint-*/whole")]
        return max(whole, default=None)


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Trainer())
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.0)


def save(step: int, size: int) -> str:
    folder = f"$WORK/out/checkpoint-{step}"
    return f"mkdir -p {folder}; head -c {size} /dev/zero > {folder}/w; touch {folder}/whole; "


def test_a_stage_stops_before_its_next_checkpoint_would_not_fit(small: Path, tmp_path: Path) -> None:
    """Base of 4 MB: a native checkpoint has 12. Somebody else fills the disk while the second stage runs."""
    model, root = base(tmp_path / "base", MB), small / "runs"
    root.mkdir()
    one = trained("one", "echo one > $WORK/result")
    slow = (
        save(1, 12 * MB)
        + f"head -c {50 * MB} /dev/zero > {small}/other; for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 1; done; "
    )
    two = trained("two", slow + save(2, 12 * MB) + "echo two > $WORK/result", model="one")
    execute.run(todo(root, model, one), Limits(), QUIET)
    with pytest.raises(StageFailed) as told:
        execute.run(todo(root, model, one, two), Limits(), QUIET)
    text = str(told.value)
    assert "stage two [machine]: stopped before the disk is full" in text and "need about 48 MB" in text
    assert all(way in text for way in ("synergy clean", "run.keep=final", "run.dir"))
    assert len(ledger.read(root / "ledger.jsonl")) == 1
    assert not list(root.glob("stages/*/work/out/checkpoint-2"))
    (small / "other").unlink()
    made = todo(root, model, one, two).steps
    assert [(step.action, step.why.split(" by")[0][:22]) for step in made][1] == ("resume", "stopped after step 1")


def test_a_disk_that_is_full_all_the_same_costs_nothing_published(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ENOSPC, of the framework and of the driver's own publishing; without the look ahead."""
    monkeypatch.setattr(disk.Watch, "look", lambda self, now, whole: None)
    model, root = base(tmp_path / "base", 10), small / "runs"
    root.mkdir()
    one = trained("one", "echo one > $WORK/result")
    fills = trained("two", f"head -c {200 * MB} /dev/zero > $WORK/w; echo done > $WORK/result", model="one")
    execute.run(todo(root, model, one), Limits(), QUIET)
    before = (root / "ledger.jsonl").read_bytes()
    with pytest.raises(StageFailed, match=r"\[machine\]: the disk is full"):
        execute.run(
            todo(
                root,
                model,
                one,
                replace(fills, settings={**fills.settings, "script": "set -e; " + fills.settings["script"]}),
            ),
            Limits(),
            QUIET,
        )
    for file in root.glob("stages/*/work/w"):
        file.unlink()
    sly = trained("three", f"echo x > $WORK/result; head -c {200 * MB} /dev/zero > {small}/other; true", model="one")
    with pytest.raises(StageFailed, match=r"\[machine\]: the disk is full"):
        execute.run(todo(root, model, one, sly), Limits(), QUIET)
    assert (root / "ledger.jsonl").read_bytes() == before
    (small / "other").unlink()
    assert [step.action for step in todo(root, model, one, sly).steps] == ["reuse", "run"]
    sound = trained("three", "echo x > $WORK/result", model="one")
    execute.run(todo(root, model, one, sound), Limits(), QUIET)


@pytest.mark.parametrize(
    ("there", "whole", "now", "wanted"),
    [
        ({}, None, None, 12),  # the first is still to come
        ({1: 5}, None, None, 7),  # it is being written
        ({1: 11}, 1, Progress(1, 4), 11),  # by the size of the last
        ({1: 11, 2: 4}, 1, Progress(2, 4), 7),
        ({3: 11, 4: 11}, 4, Progress(4, 4), 4),  # only the final model
    ],
)
def test_what_is_ahead_follows_the_stage(
    tmp_path: Path, there: dict[int, int], whole: int | None, now: Progress | None, wanted: int
) -> None:
    """In MB, for a base of a million numbers in float32."""
    model = base(tmp_path / "base", MB)
    job = Job(trained("one", ""), "k", tmp_path, tmp_path / "attempt-1", {"base": model}, {})
    for step, megabytes in there.items():
        (job.work / f"out/checkpoint-{step}").mkdir(parents=True)
        (job.work / f"out/checkpoint-{step}/w").write_bytes(b"\0" * megabytes * MB)
    assert round((disk.ahead(job, now, whole) - disk.RESERVE - disk.weights(model)) / MB) == wanted


@pytest.mark.parametrize(("now", "written", "wanted"), [(None, 0, 4), (Progress(2, 4), 0, 4), (Progress(4, 4), 3, 1)])
def test_a_stage_that_writes_once_has_its_final_model_ahead(
    tmp_path: Path, now: Progress | None, written: int, wanted: int
) -> None:
    """In MB, as above."""
    model, stage = base(tmp_path / "base", MB), trained("one", "")
    once = replace(stage, settings={**stage.settings, "config": {"num_train_epochs": 1, "save_strategy": "epoch"}})
    job = Job(once, "k", tmp_path, tmp_path / "attempt-1", {"base": model}, {})
    (job.work / "out").mkdir(parents=True)
    (job.work / "out/model.safetensors").write_bytes(b"\0" * written * MB)
    assert round((disk.ahead(job, now, None) - disk.RESERVE - disk.weights(model)) / MB) == wanted


def step(of: Stage, inputs: dict[str, Path]) -> Step:
    return Step(of, "k", {}, Path("/nowhere/stages/x"), inputs, "run", "")


def test_estimates_follow_the_settings(tmp_path: Path) -> None:
    """The paper's settings: base in bfloat16, FSDP's float32 checkpoints are eight times its size."""
    model = base(tmp_path / "base", MB, "BF16")
    bench = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
    words = ("scale=qwen2_5_vl_7b", "data.source=/data", "model.revision=" + "0" * 40, bench)

    def told(recipe: str, kind: str, *more: str) -> float:
        planned = strategies.stages(config(recipe, *words, *more))
        found = next(s for s in planned if s.kind == kind)
        steps = [step(one, {}) for one in planned]
        return round(disk.of_step(step(found, {"base": model}), disk.weights(model), steps) / MB, 1)

    assert told("sft", "sft") == 2 + 4 + 3 * 16
    assert told("sft", "sft", "sft.choose=best") == 2 + 4 + 6 * 16, "one per epoch"
    assert told("sft", "sft", "sft.config.fsdp=null", "sft.config.fsdp_config=null") == 2 + 4 + 3 * 12
    assert told("sft", "sft", "sft.config.num_train_epochs=1") == 2 + 4, "the final model alone"
    assert told("sft", "sft", "sft.config.num_train_epochs=1", "sft.choose=best") == 2 + 4 + 2 * 16
    assert told("sft", "sft", "sft.config.num_train_epochs=1", "sft.config.save_strategy=steps") == 2 + 4 + 3 * 16
    assert told("sft", "sft", "sft.config.save_strategy='no'") == 2 + 4
    assert told("rl", "rl") == 2 + 3 * 16
    assert told("rl", "rl", "rl.verl.trainer.max_actor_ckpt_to_keep=5") == 2 + 6 * 16
    assert told("rl", "rl", "budget.rl_steps=50") == 2 + 16, "one, at its end"
    assert told("rl", "rl", "budget.rl_steps=51") == 2 + 2 * 16, "one of the 50th step, one at its end"
    assert told("rl", "rl", "budget.rl_steps=500") == 2 + 3 * 16
    assert told("interleaved", "rl", "budget.rl_steps=150", "recipe.rounds=3") == 2 + 16, "of each round"
    assert told("ablation/rl_ppo", "rl") == 2 + 3 * 28
    assert told("sft", "sft", "+sft.config.pure_bf16=true") == 2 + 2 + 3 * 8
    half = "rl.verl.actor_rollout_ref.actor.fsdp_config.model_dtype=bf16"
    assert told("rl", "rl", half) == 2 + 3 * 8
    assert told("ablation/rl_ppo", "rl", half) == 2 + 3 * (8 + 12), "the critic stays in float32"
    assert told("ablation/rl_ppo", "rl", "+rl.verl.critic.checkpoint.save_contents=[model]") == 2 + 3 * (16 + 4)


def test_tables_are_counted_by_what_they_are_made_from(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet/test.parquet").write_bytes(b"\0" * 3 * MB)
    settings = {"part": "benchmarks", "benchmarks": [{"name": "A"}, {"name": "B"}]}
    made = Stage("benchmarks", "prepare", settings, {})
    inputs = {"tagged_A": tmp_path / "parquet", "tagged_B": Path("owner/name@01234567 (to be downloaded)")}
    assert disk.of_step(step(made, inputs), 0) == disk.DATA_BYTES + 4 * MB + disk.TAGGED_BYTES


def test_the_plan_tells_the_space_it_wants(tmp_path: Path) -> None:
    from synergy.errors import UserError

    with pytest.raises(UserError, match=r"synergy clean .* or set run\.dir"):
        plan.require_space(Workspace(tmp_path), 1 << 60)

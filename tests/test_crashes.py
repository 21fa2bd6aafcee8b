"""Killed at any boundary, any number of times: the same command ends with the same result, for the stages of every strategy.

Here a kill is an exception that nothing catches, raised in the middle of the driver's own calls, so that every kind of boundary
of every recipe can be tried in seconds. What real SIGKILL does beyond that (orphans, locks, torn writes of other processes)
is tried with real processes in test_driver.py and with the real frameworks in test_end_to_end.py. The double of a framework
saves every second step, as theirs do, and repeats what it had not saved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_driver import QUIET
from test_strategies import config

from synergy import stages, strategies
from synergy.driver import card, execute, ledger, manifest, plan
from synergy.driver.execute import Limits
from synergy.driver.externals import External
from synergy.driver.plan import Plan, Workspace
from synergy.errors import StageFailed
from synergy.stages import Command, Job, Progress, Stage

RECIPES = tuple(name for name in strategies.STRATEGIES if name != "tag")
STEPS, SAVED = 5, 2
"""Of a stage, and after how many of them the double saves."""


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours may catch it and go on."""


class Clock:
    """Counts the boundaries that a driver passes, and kills it at one. steps: how often each step of each stage was taken."""

    def __init__(self) -> None:
        self.passed, self.at = 0, -1
        self.names: list[str] = []
        self.steps: Counter[tuple[str, int]] = Counter()

    def __call__(self, name: str) -> None:
        self.passed += 1
        self.names.append(name)
        if self.passed == self.at:
            raise Killed(name)

    def arm(self, at: int) -> None:
        self.passed, self.at, self.names = 0, at, []


class Double:
    """A framework that adds up what its inputs hold, in steps, with native checkpoints and resume."""

    IDENTITY: frozenset[str] = frozenset({"name"})
    RUNTIME: frozenset[str] = frozenset()
    FRAMEWORKS: tuple[str, ...] = ()
    PACKAGES: tuple[str, ...] = ()
    NATIVE, VERSION = "double", 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def identity(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return dict(settings)

    def check(self, stage: Stage, pythons: Mapping[str, str]) -> None: ...

    def progress(self, job: Job) -> Progress | None:
        return None

    def resume_point(self, job: Job) -> int | None:
        saved = [int(p.name.split("-")[1]) for p in job.work.glob("checkpoint-*") if (p / "complete").exists()]
        return max(saved, default=None)

    def command(self, job: Job) -> Command | None:
        """Runs at once, in this process: the driver is told that nothing is left to do."""
        done = self.resume_point(job)
        at = job.work / f"checkpoint-{done}" / "weights" if done else None
        value = int(at.read_text()) if at else sum(len((p / "result").read_text()) for p in job.inputs.values())
        for step in range((done or 0) + 1, STEPS + 1):
            self.clock(f"{job.stage.name} step {step}")
            self.clock.steps[job.stage.name, step] += 1
            value = (value * 31 + step) % 9973
            if step % SAVED == 0:
                self.save(job.work / f"checkpoint-{step}", value)
        (job.work / "result").write_text(f"{job.stage.name} {value}\n")
        return None

    def save(self, folder: Path, value: int) -> None:
        folder.mkdir(exist_ok=True)
        self.clock("mid-save")
        (folder / "weights").write_text(str(value))
        (folder / "complete").write_text("")

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        if not (job.work / "result").exists():
            raise StageFailed("no result")
        out.mkdir()
        self.clock("mid-export")
        (out / "result").write_text((job.work / "result").read_text())
        return {}


def todo(root: Path, recipe: str) -> Plan:
    """The recipe's real stages, with the double in place of every framework."""
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "result").write_text("outside\n")
    planned = [
        Stage(stage.name, stage.kind, {"name": stage.name}, {r: n for r, n in stage.inputs.items() if n != "source"})
        for stage in strategies.stages(CONFIGS[recipe])
    ]
    root.mkdir(exist_ok=True)
    return Plan(
        recipe, plan.make(planned, {"base": External(outside, "0" * 64)}, Workspace(root), {}), Workspace(root), {}
    )


CONFIGS = {recipe: config(recipe) for recipe in RECIPES}


@contextmanager
def boundaries(clock: Clock) -> Iterator[None]:
    """Every call by which the driver changes the disk passes the clock before and after; a ledger line can tear."""

    def around(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            clock(f"before {name}")
            told = real(*args, **kwargs)
            clock(f"after {name}")
            return told

        return call

    def torn(path: Path, entry: ledger.Entry) -> None:
        clock("before ledger")
        try:
            clock("mid-ledger")
        except Killed:
            with path.open("a") as stream:
                stream.write(json.dumps({"key": entry.key, "schema": 1})[:-9])
            raise
        append(path, entry)
        clock("after ledger")

    def prune(path: Path, ignore_errors: bool = False) -> None:
        if path.is_dir():
            for child in sorted(path.iterdir()):
                clock("mid-prune")
                rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink()
            rmtree(path, ignore_errors=ignore_errors)

    append, rmtree = ledger.append, shutil.rmtree
    double = Double(clock)
    with (
        mock.patch.object(stages, "kind", lambda name: double),
        mock.patch.object(execute.process, "reap", around("reap", lambda mark: 0)),
        mock.patch.object(execute, "_sync", around("sync", lambda folder: None)),
        mock.patch.object(execute, "_sync_folder", around("rename", lambda folder: None)),
        mock.patch.object(execute.manifest, "write", around("manifest", manifest.write)),
        mock.patch.object(execute.card, "write", around("card", card.write)),
        mock.patch.object(execute.ledger, "append", torn),
        mock.patch.object(execute.shutil, "rmtree", prune),
        mock.patch.object(os, "fsync", lambda fd: None),
    ):
        yield


def drive(root: Path, recipe: str) -> None:
    execute.run(todo(root, recipe), Limits(), QUIET)


def results(root: Path, recipe: str) -> dict[str, str]:
    """Stage -> content digest, of what the ledger holds; checks on the way that nothing is left or told twice."""
    steps = todo(root, recipe).steps
    assert [step.action for step in steps] == ["reuse"] * len(steps)
    lines = [json.loads(line) for line in (root / "ledger.jsonl").read_text().splitlines() if line.endswith("}")]
    keys = [line["key"] for line in lines if line.get("output")]
    assert len(keys) == len(set(keys)) == len(steps), "a stage is in the ledger twice"
    left = [p for p in (root / "stages").glob("*/*") if p.name in (".publishing", "work") or "superseded" in p.name]
    assert not [p for p in left if "superseded" not in p.name], left
    return {step.stage.name: step.entry.digest for step in steps if step.entry is not None}


def uninterrupted(tmp: Path, recipe: str) -> tuple[dict[str, str], list[str]]:
    """Results, and the boundaries in order."""
    clock = Clock()
    with boundaries(clock):
        drive(tmp / "whole", recipe)
        names = list(clock.names)
        return results(tmp / "whole", recipe), names


def crash(root: Path, recipe: str, kills: list[int]) -> tuple[dict[str, str], Clock, int]:
    """Runs with a kill at each of these boundaries in turn, and then to the end. Returns results and how many kills struck."""
    clock, struck = Clock(), 0
    with boundaries(clock):
        for at in kills:
            clock.arm(at)
            try:
                drive(root, recipe)
            except Killed:
                struck += 1
        clock.arm(-1)
        drive(root, recipe)
        return results(root, recipe), clock, struck


def repeated(clock: Clock) -> int:
    """Steps that were taken more than once, in the stage that lost most."""
    lost: Counter[str] = Counter()
    for (stage, _), times in clock.steps.items():
        lost[stage] += times - 1
    return max(lost.values(), default=0)


def chosen(names: list[str]) -> list[int]:
    """Of every kind of boundary the first and the last: in the stage that begins a recipe and in the one that ends it."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names, 1):
        places.setdefault(name[name.index("step") :] if " step " in name else name, []).append(at)
    return sorted({at for found in places.values() for at in (found[0], found[-1])})


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_once_at_every_kind_of_boundary(
    recipe: str, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    wanted, names = uninterrupted(tmp_path, recipe)
    assert {n for n in names if " step " not in n} >= {
        "mid-export",
        "mid-ledger",
        "mid-save",
        "mid-prune",
        "before card",
    }
    cases = chosen(names)
    for at in cases:
        root = tmp_path / f"killed-{at}"
        found, clock, struck = crash(root, recipe, [at])
        assert struck == 1 and found == wanted, names[at - 1]
        assert repeated(clock) <= SAVED, f"{names[at - 1]}: more than a save interval was repeated"
        shutil.rmtree(root)
    record_property("cases", len(cases))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=st.sampled_from(RECIPES), kills=st.lists(st.integers(1, 400), min_size=2, max_size=8))
def test_killed_again_and_again(recipe: str, kills: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp = tmp_path_factory.mktemp("crashes")
    wanted, _ = uninterrupted(tmp, recipe)
    found, clock, struck = crash(tmp / "killed", recipe, kills)
    assert found == wanted
    assert repeated(clock) <= SAVED * max(struck, 1), "each kill costs at most a save interval"
    shutil.rmtree(tmp)

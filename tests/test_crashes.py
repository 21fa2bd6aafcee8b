"""Killed at any boundary, any number of times: the same command ends with the same result, for the stages of every strategy.

Here a kill is an exception that nothing catches, raised in the middle of the driver's own calls and of what the frameworks
write (doubles.py), so that every kind of boundary of every recipe can be tried in seconds. What real SIGKILL does beyond that
(orphans, locks, torn writes of other processes) is tried with real processes in test_driver.py, test_lock.py and
test_orphans.py, and with the real frameworks in test_end_to_end.py. `python benchmarks/crash_matrix.py` prints the table.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import doubles
import pytest
from conftest import make_checkpoint
from doubles import OVERRIDES, SAVED, TRAINING, Clock, Other
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from test_driver import QUIET
from test_strategies import config

from synergy import environments, stages, strategies
from synergy.driver import card, execute, identity, ledger, manifest, plan, publish
from synergy.driver.execute import Limits
from synergy.driver.externals import External
from synergy.driver.plan import Plan, Workspace
from synergy.stages import Job, Stage

FINE = ("sft", "rl", "two_stage")
"""Recipes that are killed in the middle of every file that the frameworks write; the others have the same stages."""
RECIPES = tuple(name for name in strategies.STRATEGIES if name != "tag")


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours may catch it and go on."""


@functools.cache
def planned(recipe: str) -> tuple[Stage, ...]:
    """The recipe's real stages; what trains nothing is known by its name alone."""
    found = []
    for stage in strategies.stages(config(recipe, *OVERRIDES)):
        settings = stage.settings if stage.kind in TRAINING else {"name": stage.name}
        found.append(Stage(stage.name, stage.kind, settings, {r: n for r, n in stage.inputs.items() if n != "source"}))
    return tuple(found)


@functools.cache
def pythons() -> dict[str, str]:
    return {name: str(environments.locate(name)) for name in environments.FRAMEWORKS}


def todo(root: Path, recipe: str) -> Plan:
    base, space = root.parent / "base", Workspace(root)
    if not base.exists():
        make_checkpoint(base)
    root.mkdir(exist_ok=True)
    outside = {"base": External(base, identity.digest(base))}
    return Plan(recipe, plan.make(list(planned(recipe)), outside, space, pythons()), space, pythons())


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

    def prune(path: Path, ignore_errors: bool = False, **more: Any) -> None:
        if Path(path).is_dir() and not more:
            for child in sorted(path.iterdir()):
                clock("mid-prune")
                rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink()
            rmtree(path, ignore_errors=ignore_errors)
        elif more:  # not ours
            rmtree(path, ignore_errors, **more)

    def process(command: Any, job: Job, *rest: Any) -> tuple[int, int]:
        clock("after spawn")
        doubles.train(job, clock) if job.stage.kind in TRAINING else other.work(job)
        clock("after the child")
        return 0, 0

    append, rmtree, other = ledger.append, shutil.rmtree, Other(clock)
    real = {name: stages.kind(name) for name in TRAINING}
    exports = {name: around("export", kind.collect) for name, kind in real.items()}
    with (
        mock.patch.object(stages, "kind", lambda name: real.get(name, other)),
        mock.patch.object(real["sft"], "collect", exports["sft"]),
        mock.patch.object(real["rl"], "collect", exports["rl"]),
        mock.patch.object(execute.orphans, "sweep", around("sweep", lambda root, spare=None: 0)),
        mock.patch.object(execute, "_run_command", process),
        mock.patch.object(publish, "sync", around("sync", lambda folder: None)),
        mock.patch.object(publish, "move", around("rename", publish.move)),
        mock.patch.object(publish.manifest, "write", around("manifest", manifest.write)),
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
    told_once(root)
    kept = {"output", manifest.FILE, "README.md"}
    left = [p for p in (root / "stages").glob("*/*") if p.name not in kept and not p.name.startswith("attempt-")]
    assert not left, left
    assert not [p for p in root.iterdir() if p.name in (".driver", ".processes.jsonl") or ".trash" in p.name]
    return {step.stage.name: step.entry.digest for step in steps if step.entry is not None}


def told_once(root: Path) -> None:
    """No stage is in the ledger twice, and what is in it is there."""
    file = root / "ledger.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    keys = [row["key"] for row in map(ledger._row, lines) if row is not None and row.get("output")]
    entries = ledger.read(file)
    assert len(keys) == len(set(keys)) == len(entries), "a stage is in the ledger twice"
    assert all(manifest.verify(root, entry.output, entry.digest) is None for entry in entries.values())


def uninterrupted(tmp: Path, recipe: str) -> tuple[dict[str, str], list[str]]:
    """Results, and the boundaries in order."""
    clock = Clock(Killed)
    with boundaries(clock):
        drive(tmp / "whole", recipe)
        names = list(clock.names)
        return results(tmp / "whole", recipe), names


def crash(root: Path, recipe: str, kills: list[int]) -> tuple[dict[str, str], Clock, int]:
    """Runs with a kill at each of these boundaries in turn, and then to the end. Returns results and how many kills struck."""
    clock, struck = Clock(Killed), 0
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


def point(name: str, fine: bool) -> str:
    """The kind of a boundary: a training step's is its number. fine: that of a file being saved is which file it is."""
    if not fine and name.startswith("mid-save"):
        return "mid-save"
    return name[name.index("step ") :] if " step " in name else name


def label(name: str) -> str:
    """The kind in a table of few lines."""
    return "training step" if " step " in name else name.split(" ")[0] if name.startswith("mid-save") else name


def chosen(names: list[str], fine: bool) -> list[int]:
    """Of every kind of boundary the first and the last: in the stage that begins a recipe and in the one that ends it, in the
    first checkpoint and in the final files."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names, 1):
        places.setdefault(point(name, fine), []).append(at)
    return sorted({at for found in places.values() for at in (found[0], found[-1])})


def matrix(recipe: str, tmp: Path) -> Iterator[tuple[str, str | None]]:
    """(kill point, None or what went wrong) of each case."""
    wanted, names = uninterrupted(tmp, recipe)
    for at in chosen(names, recipe in FINE):
        root = tmp / f"killed-{at}"
        try:
            found, clock, struck = crash(root, recipe, [at])
            assert struck == 1, "the kill struck nothing"
            assert found == wanted, "another result"
            assert repeated(clock) <= SAVED, "more than a save interval was repeated"
        except Exception as error:
            yield label(names[at - 1]), f"boundary {at} ({names[at - 1]}): {type(error).__name__}: {error}"
        else:
            yield label(names[at - 1]), None
        shutil.rmtree(root, ignore_errors=True)


WANTED = {f"{when} {what}" for when in ("before", "after") for what in ("rename", "sync", "manifest", "card")}
WANTED |= {"after spawn", "mid-save", "mid-export", "mid-ledger", "mid-prune", "before ledger", "after ledger"}
"""Of every recipe, and the export of those that train."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_once_at_every_kind_of_boundary(recipe: str, tmp_path: Path) -> None:
    cases = list(matrix(recipe, tmp_path))
    trains = any(stage.kind in TRAINING for stage in planned(recipe))
    assert {name for name, _ in cases} >= (WANTED | {"before export", "after export"} if trains else WANTED)
    assert not [(name, wrong) for name, wrong in cases if wrong]


class Crashes(RuleBasedStateMachine):
    """Any sequence of kills, of whole runs, and of other recipes in the same directory, which share stages with it."""

    def __init__(self) -> None:
        super().__init__()
        self.tmp = Path(tempfile.mkdtemp())
        self.clock, self.struck = Clock(Killed), 0
        self.seen: set[str] = set()

    @initialize(recipe=st.sampled_from(RECIPES))
    def begin(self, recipe: str) -> None:
        self.recipe = recipe

    @rule(at=st.integers(1, 250))
    def kill(self, at: int) -> None:
        self._drive(self.recipe, at)

    @rule(recipe=st.sampled_from(RECIPES), at=st.integers(1, 250))
    def kill_another(self, recipe: str, at: int) -> None:
        self._drive(recipe, at)

    @rule()
    def finish(self) -> None:
        wanted = whole(self.recipe)
        self._drive(self.recipe, -1)
        with boundaries(self.clock):
            assert results_of(self.tmp / "runs", self.recipe) == wanted

    @invariant()
    def the_ledger_is_true(self) -> None:
        told_once(self.tmp / "runs")
        assert repeated(self.clock) <= SAVED * self.struck, "each kill costs at most a save interval"

    def teardown(self) -> None:
        if hasattr(self, "recipe"):
            self.finish()
        shutil.rmtree(self.tmp)

    def _drive(self, recipe: str, at: int) -> None:
        self.clock.arm(at)
        with boundaries(self.clock):
            try:
                drive(self.tmp / "runs", recipe)
            except Killed:
                self.struck += 1


def results_of(root: Path, recipe: str) -> dict[str, str]:
    return {step.stage.name: step.entry.digest for step in todo(root, recipe).steps if step.entry is not None}


@functools.cache
def whole(recipe: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as tmp:
        return uninterrupted(Path(tmp), recipe)[0]


def test_any_sequence_of_crashes() -> None:
    run_state_machine_as_test(
        Crashes, settings=settings(deadline=None, max_examples=10, stateful_step_count=6, phases=[Phase.generate])
    )  # type: ignore[no-untyped-call]

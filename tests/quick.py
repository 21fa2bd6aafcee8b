"""Recipes in a second: their real stages, with a double in place of every framework that only writes a line, and kills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from doubles import Plain
from test_strategies import config

from synergy import stages, strategies
from synergy.driver import execute, identity, plan, process, retention
from synergy.driver.execute import Limits, Watcher
from synergy.driver.externals import External
from synergy.driver.keep import Keeper
from synergy.driver.plan import Plan, Step, Workspace
from synergy.stages import Command, Job, Stage

RECIPES = tuple(name for name in strategies.STRATEGIES if name != "tag")
CONFIGS = {recipe: config(recipe) for recipe in RECIPES}


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours may catch it and go on."""


class Double(Plain):
    """Its result tells all that went in, so that a stage made from something else is another one."""

    def command(self, job: Job) -> Command | None:
        parts = [(path / "result").read_text() for path in job.inputs.values()]
        (job.work / "result").write_text(f"{job.stage.name} of {identity.sha(''.join(parts))}\n")
        (job.attempt / "config.yaml").write_text("".join(f"{path}\n" for path in job.inputs.values()))
        return None

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        out.mkdir()
        (out / "result").write_text((job.work / "result").read_text())
        return {}


def todo(root: Path, recipe: str) -> Plan:
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "result").write_text("outside\n")
    planned = [
        Stage(stage.name, stage.kind, {"name": stage.name}, {r: n for r, n in stage.inputs.items() if n != "source"})
        for stage in strategies.stages(CONFIGS[recipe])
    ]
    root.mkdir(exist_ok=True)
    space = Workspace(root)
    return Plan(recipe, plan.make(planned, {"base": External(outside, identity.digest(outside))}, space, {}), space, {})


class Clock:
    """Counts what a driver does, and kills it at one moment. at: which; None: never."""

    def __init__(self, at: int | None = None) -> None:
        self.passed, self.at, self.names = 0, at, list[str]()

    def __call__(self, name: str) -> None:
        self.passed += 1
        self.names.append(name)
        if self.passed == self.at:
            raise Killed(name)

    def watcher(self) -> Watcher:
        return Watcher(
            lambda step: self(f"start {step.stage.name}"),
            lambda step, now: None,
            lambda step, word, seconds: self(f"done {step.stage.name}"),
        )


@contextmanager
def doubles(clock: Clock) -> Iterator[None]:
    """Every stage is the double; pruning passes the clock before it takes something and in the middle."""
    double, rmtree, remove = Double(), retention.shutil.rmtree, retention._remove

    def taken(root: Path, path: Path) -> None:
        clock(f"take {path}")
        remove(root, path)

    def deleted(path: Path, ignore_errors: bool = False) -> None:
        if retention.TRASH in str(path) and path.exists():
            clock(f"delete {path}")
        rmtree(path, ignore_errors=ignore_errors)

    with (
        mock.patch.object(stages, "kind", lambda name: double),
        mock.patch.object(process, "reap", lambda *marks, **more: 0),
        mock.patch.object(retention, "_remove", taken),
        mock.patch.object(retention.shutil, "rmtree", deleted),
    ):
        yield


def drive(root: Path, recipes: Sequence[str], policy: str, clock: Clock | None = None) -> list[list[Step]]:
    """As run.action does it: plans of all jobs first, then each planned anew. Returns the steps of each job."""
    clock = clock or Clock()
    found = []
    with doubles(clock):
        plans = [todo(root, recipe) for recipe in recipes]
        for number, recipe in enumerate(recipes, 1):
            now = todo(root, recipe)
            found.append(now.steps)
            execute.run(now, Limits(), clock.watcher(), keeper=Keeper.of(policy, [now, *plans[number:]]))
    return found

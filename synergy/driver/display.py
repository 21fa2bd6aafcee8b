"""Live progress: a table of bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from synergy.driver.execute import Watcher
from synergy.driver.plan import Step
from synergy.stages import Progress as Done

PLAIN_SECONDS = 15.0


@contextmanager
def watcher(steps: list[Step]) -> Iterator[Watcher]:
    """A display for the steps of a plan."""
    if sys.stdout.isatty():
        with _bars(len(steps)) as watch:
            yield watch
    else:
        yield _lines(len(steps))


@contextmanager
def _bars(count: int) -> Iterator[Watcher]:
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<14}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]:>12} {task.fields[figure]:<34}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(),
    )
    tasks: dict[str, TaskID] = {}

    def start(step: Step) -> None:
        tasks[step.stage.name] = bars.add_task("", total=None, stage=step.stage.name, steps="", figure="starting")

    def tick(step: Step, now: Done | None) -> None:
        if now is not None:
            steps = f"{now.done}/{now.total}"
            bars.update(tasks[step.stage.name], completed=now.done, total=now.total, steps=steps, figure=now.figure)

    def done(step: Step, word: str, seconds: float) -> None:
        task = tasks[step.stage.name]
        total = bars.tasks[task].total or 1
        bars.update(task, completed=total, total=total, figure=word if word == "reused" else f"{word}, {seconds:.0f} s")
        bars.stop_task(task)

    def note(step: Step, text: str) -> None:
        bars.console.print(f"{step.stage.name}: {text}", markup=False)

    with bars:
        yield Watcher(start, tick, done, note)


def _lines(count: int) -> Watcher:
    began, spoke, numbers = time.time(), [0.0], dict[str, int]()
    said: dict[str, Done] = {}

    def say(text: str) -> None:
        print(f"[{time.time() - began:6.0f} s] {text}", flush=True)
        spoke[0] = time.time()

    def start(step: Step) -> None:
        numbers[step.stage.name] = len(numbers) + 1
        if step.action != "reuse":
            say(f"{len(numbers)}/{count} {step.stage.name} ({step.stage.kind}): {step.stage.note}")

    def tick(step: Step, now: Done | None) -> None:
        name = step.stage.name
        if now is not None and now != said.get(name) and time.time() - spoke[0] >= PLAIN_SECONDS:
            said[name] = now
            say(f"    {name}: {now.unit} {now.done} of {now.total} {now.figure}")

    def done(step: Step, word: str, seconds: float) -> None:
        how = f"reused, {step.why}" if word == "reused" else f"done in {seconds:.0f} s{word.removeprefix('done')}"
        say(f"{numbers[step.stage.name]}/{count} {step.stage.name}: {how}")

    def note(step: Step, text: str) -> None:
        say(f"    {step.stage.name}: {text}")

    return Watcher(start, tick, done, note)

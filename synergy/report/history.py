"""What happened: training curves from the stages' metrics, and the timeline of stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from synergy.driver.plan import Plan, Step

PAUSE_SECONDS = 30.0
"""One run of the driver goes from stage to stage in a second or two. A longer pause means that another run took over, and
that it reused what lies before."""


@dataclass(frozen=True)
class Curve:
    """Metrics of one training stage, a row per logged step. steps: how many it took; weights that stayed: no rows."""

    stage: str
    kind: str
    steps: int
    rows: tuple[dict[str, float], ...]

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it was logged."""
        there = [row for row in self.rows if row.get(name) is not None]
        return [row["step"] for row in there], [row[name] for row in there]


@dataclass(frozen=True)
class Span:
    """One stage in time. begin: seconds of the axis, from which the pauses between runs of the driver are cut out; run: which
    of these runs made it; reused: made in an earlier run than the last stage was."""

    step: Step
    begin: float
    run: int
    reused: bool

    @property
    def seconds(self) -> float:
        return self.step.entry.seconds if self.step.entry else 0.0


def curves(todo: Plan, kind: str) -> list[Curve]:
    """The curves of all stages of a kind, in order. A stage that had nothing to train has none."""
    found = []
    for step in todo.steps:
        if step.stage.kind == kind and step.entry is not None and "metrics" in step.entry.figures:
            rows = tuple(_metrics(step))
            last = int(rows[-1]["step"]) if rows else 0
            found.append(Curve(step.stage.name, kind, max(int(step.entry.figures.get("steps", 0)), last), rows))
    return found


def _metrics(step: Step) -> Iterator[dict[str, Any]]:
    """Rows of a stage's metrics; none if someone tidied them away, since a stage's output alone is guarded."""
    file = step.folder / str(step.entry.figures["metrics"]) if step.entry else step.folder
    if file.is_file():
        for line in file.read_text().splitlines():
            yield json.loads(line)


def starts(found: Sequence[Curve]) -> list[int]:
    """The cumulative step at which each stage begins, and at last that at which all end."""
    at = [0]
    for curve in found:
        at.append(at[-1] + curve.steps)
    return at


def timeline(todo: Plan) -> list[Span]:
    """All stages by the time they began."""
    steps = sorted((s for s in todo.steps if s.entry is not None), key=lambda s: s.entry.started if s.entry else 0.0)
    spans: list[tuple[Step, float, int]] = []
    cut, end, run = 0.0, None, 0
    for step in steps:
        entry = step.entry
        assert entry is not None
        if end is None:
            cut = entry.started
        elif entry.started - end > PAUSE_SECONDS:
            cut += entry.started - end
            run += 1
        spans.append((step, entry.started - cut, run))
        end = max(end or 0.0, entry.started + entry.seconds)
    return [Span(step, begin, number, number < run) for step, begin, number in spans]

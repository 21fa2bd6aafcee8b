"""What several plans have in common: each distinct stage once, who uses it, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from synergy.driver import ledger
from synergy.driver.plan import Plan, Step


@dataclass(frozen=True)
class Shared:
    """A distinct stage. users: indices of the plans that have it. seconds: what it took, or, as long as it is not finished,
    the median of the finished stages of its kind and name; None if there are none."""

    step: Step
    users: tuple[int, ...]
    seconds: float | None


@dataclass(frozen=True)
class Saving:
    """stages: of all plans, each plan counted by itself; distinct: what is really made. seconds: of the ``timed`` among the
    stages that are saved whose time the ledger tells."""

    stages: int
    distinct: int
    seconds: float
    timed: int

    @property
    def saved(self) -> int:
        return self.stages - self.distinct


def distinct(plans: Sequence[Plan]) -> list[Shared]:
    """The stages of all plans in the order they would run, each once: as what one of them makes, should another reuse it (a
    checkpoint that run.keep=final lets go in between)."""
    steps: dict[Path, Step] = {}
    users: dict[Path, list[int]] = {}
    for number, todo in enumerate(plans):
        for step in todo.steps:
            if steps.setdefault(step.folder, step).action == "reuse":
                steps[step.folder] = step
            users.setdefault(step.folder, []).append(number)
    times = _times(plans)
    return [
        Shared(step, tuple(users[folder]), step.entry.seconds if step.entry else times.get((step.stage.kind, step.stage.name)))
        for folder, step in steps.items()
    ]  # fmt: skip


def _times(plans: Sequence[Plan]) -> dict[tuple[str, str], float]:
    """(kind, name) -> median seconds of the finished stages that bear them."""
    seen: dict[tuple[str, str], list[float]] = {}
    for space in dict.fromkeys(todo.space for todo in plans):
        for entry in ledger.read(space.ledger).values():
            seen.setdefault((entry.kind, entry.name), []).append(entry.seconds)
    return {place: median(values) for place, values in seen.items()}


def saving(found: Sequence[Shared]) -> Saving:
    known = [(len(one.users) - 1, one.seconds) for one in found if one.seconds is not None]
    return Saving(
        stages=sum(len(one.users) for one in found),
        distinct=len(found),
        seconds=sum(again * seconds for again, seconds in known),
        timed=sum(again for again, _ in known),
    )

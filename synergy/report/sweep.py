"""What the jobs of a sweep came to: all their models side by side, each recipe as the mean over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synergy.driver import identity, sharing
from synergy.driver.plan import Plan
from synergy.driver.sharing import Shared
from synergy.report import build, measure, pages, regression, results, seeds, style
from synergy.report.measure import ALL, Row
from synergy.report.regression import Shift
from synergy.report.results import BASE, Model
from synergy.report.seeds import Strategy

if TYPE_CHECKING:
    from synergy.compose import Task

ORDER = (BASE, *style.RECIPES)
"""The rows of the paper's Table 6. Any other recipe comes after those of the same strategy."""


@dataclass(frozen=True)
class Outcome:
    """One job: the row of the model that it made, on all questions, its gain over its own base, and its own report's folder."""

    task: Task
    report: str
    row: Row
    gain: float | None


@dataclass(frozen=True)
class Sweep:
    """Everything that is told. plan: the distinct stages of all jobs as one plan; models: one of each strategy; shifts:
    of the base model, where all jobs have the same one."""

    name: str
    created: str
    plan: Plan
    stages: list[Shared]
    outcomes: list[Outcome]
    strategies: list[Strategy]
    models: list[Model]
    shifts: list[Shift]

    @property
    def rows(self) -> list[Row]:
        return [row for one in self.strategies for row in one.rows]

    @property
    def gains(self) -> list[measure.Gain]:
        return [gain for one in self.strategies for gain in one.gains]

    @property
    def main(self) -> str:
        """The benchmark whose numbers stand for all: their average, or the only one."""
        return measure.main(self.rows)


def name(plans: Sequence[Plan]) -> str:
    """Named after the keys of what all jobs end with, in any order."""
    finals = sorted({todo.steps[-1].key for todo in plans})
    return f"sweep-{identity.sha(' '.join(finals))[:8]}"


def gather(found: Sequence[tuple[Task, Plan]]) -> Sweep:
    """All numbers. The answers of one recipe are in memory at a time."""
    plans = [todo for _, todo in found]
    groups: dict[str, list[tuple[Task, Plan]]] = {}
    for task, todo in sorted(found, key=lambda job: _order(job[1].recipe)):
        groups.setdefault(task.recipe, []).append((task, todo))
    bases: dict[str, tuple[Task, Model]] = {}
    strategies, models, outcomes = [], [], []
    for recipe, jobs in groups.items():
        pairs = []
        for task, todo in jobs:
            evaluated = results.models(todo)
            base, final = evaluated[0], evaluated[-1]
            bases.setdefault(base.step.key, (task, base))
            pairs.append((base, final))
            outcomes.append(_outcome(task, todo, base, final))
        if pairs[0][0] is not pairs[0][1]:
            strategies.append(seeds.summary(recipe, jobs[0][1].recipe, pairs))
            models.append(pairs[0][1])
    told = [(BASE if len(bases) == 1 else f"{BASE} of {task.name}", model) for task, model in bases.values()]
    outcomes.sort(key=lambda one: one.task.number)
    shared = sharing.distinct(plans)
    return Sweep(
        name(plans),
        pages.now(),
        Plan("sweep", [one.step for one in shared], plans[0].space, {}),
        shared,
        outcomes,
        [*(seeds.summary(label, BASE, [(model, model)]) for label, model in told), *strategies],
        [*(model for _, model in told), *models],
        regression.shifts([model for _, model in told]) if len(told) == 1 else [],
    )


def _order(recipe: str) -> int:
    return ORDER.index(recipe) if recipe in ORDER else len(ORDER)


def _outcome(task: Task, todo: Plan, base: Model, final: Model) -> Outcome:
    ours, theirs = (
        [row for row in measure.table(model) if row.level == ALL][-1] for model in (final, base)
    )  # that of the average comes last
    gain = None if final is base else ours.accuracy - theirs.accuracy
    return Outcome(task, build.folder(todo).name, ours, gain)

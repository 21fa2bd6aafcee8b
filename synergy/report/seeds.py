"""A recipe over seeds: the trainings that differ by seed alone, taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from synergy.report import measure
from synergy.report.measure import ALL, Gain, Level, Row
from synergy.report.results import BASE, Model

Place = tuple[str, Level]
"""Benchmark and level."""


@dataclass(frozen=True)
class Strategy:
    """A recipe, or the base model (no gains). trainings: how many models of it were trained, each with a seed of its own.

    rows: means over trainings; accuracy_std and length_std are over the trainings' means (ddof 1), None for one training.
    gains: of the mean over trainings; the interval is over questions. spread: standard deviation of the gain over trainings.
    """

    name: str
    recipe: str
    trainings: int
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    spread: Mapping[Place, float | None]

    def row(self, benchmark: str, level: Level = ALL) -> Row:
        return next(row for row in self.rows if (row.benchmark, row.level) == (benchmark, level))

    def gain(self, benchmark: str, level: Level = ALL) -> Gain | None:
        return next((gain for gain in self.gains if (gain.benchmark, gain.level) == (benchmark, level)), None)


def summary(name: str, recipe: str, pairs: Sequence[tuple[Model, Model]]) -> Strategy:
    """pairs: of each training the base model that it started from and the model that it made. What was evaluated once, since
    no seed decides it, counts once; from each training's model its own base is subtracted."""
    own = {model.step.key: (base, model) for base, model in pairs}
    tables = [measure.table(model) for _, model in own.values()]
    bases = [{(row.benchmark, row.level): row for row in measure.table(base)} for base, _ in own.values()]
    gains: list[Gain] = []
    if any(model is not base for base, model in own.values()):
        gains = measure.gains(
            [_pooled(BASE, [b for b, _ in own.values()]), _pooled(name, [m for _, m in own.values()])]
        )
    differences: dict[Place, list[float]] = {}
    for table, base in zip(tables, bases, strict=True):
        for row in table:
            place = (row.benchmark, row.level)
            differences.setdefault(place, []).append(row.accuracy - base[place].accuracy)
    spread = {place: measure.std(values) for place, values in differences.items()}
    return Strategy(name, recipe, len(own), tuple(means(name, tables)), tuple(gains), spread)


def means(name: str, tables: Sequence[Sequence[Row]]) -> list[Row]:
    """The mean of each row over the tables of several trainings, and the standard deviation between them."""
    by_place: dict[Place, list[Row]] = {}
    for row in (row for table in tables for row in table):
        by_place.setdefault((row.benchmark, row.level), []).append(row)
    found = []
    for rows in by_place.values():
        accuracies, lengths = [row.accuracy for row in rows], [row.length_mean for row in rows]
        mean = replace(
            rows[0],
            model=name,
            accuracy=float(np.mean(accuracies)),
            accuracy_std=measure.std(accuracies),
            length_mean=float(np.mean(lengths)),
            length_std=measure.std(lengths),
            truncated=float(np.mean([row.truncated for row in rows])),
            extracted=float(np.mean([row.extracted for row in rows])),
        )
        found.append(mean)
    return found


def _pooled(name: str, models: Sequence[Model]) -> Model:
    """The answers of all models as if one had given them: all were asked equally often, so a question's mean is over both."""
    return replace(models[0], name=name, answers=tuple(answer for model in models for answer in model.answers))

"""Regression to the mean: the base model on the runs that defined the difficulty levels, beside its fresh runs.

A question is put on level 5 for being solved in hardly any of 16 runs. Some of that is bad luck, which doesn't last: on fresh
runs the same model does better there, and worse on level 1, with nothing learnt. A gain over the level-defining runs has that
shift in it.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synergy.data.records import LEVEL_RUNS
from synergy.report import form, measure
from synergy.report.measure import ALL, AVERAGE, PLACES, Gain, Level, Row
from synergy.report.results import BASE, Model
from synergy.report.tables import Table


@dataclass(frozen=True)
class Estimate:
    """Percent or points, and the ends of its interval over questions; None where these can't tell."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Shift:
    """n: questions. defining, fresh: the base model's accuracy in percent on the runs that defined the levels and on its
    evaluation's; change: the latter less the former, in points."""

    benchmark: str
    level: Level
    n: int
    defining: Estimate
    fresh: Estimate
    change: Estimate


def passes(folder: Path) -> dict[str, dict[str, int]]:
    """Benchmark -> question id -> correct ones of the 16 runs that gave its level, from the stage's tables; benchmarks whose
    table doesn't tell them for every question are left out."""
    found = {}
    csv.field_size_limit(sys.maxsize)  # images
    for bench in json.loads((folder / "benchmarks.json").read_text()):
        with (folder / bench["tsv"]).open(encoding="utf-8", newline="") as stream:
            rows = [
                (row.get("id") or row["index"], row.get("passes")) for row in csv.DictReader(stream, delimiter="\t")
            ]
        if rows and all(count for _, count in rows):
            found[bench["name"]] = {name: int(count) for name, count in rows if count}
    return found


def shifts(models: Sequence[Model]) -> list[Shift]:
    """Of the base model among them, per benchmark and level, and for several benchmarks of their average; [] where the
    benchmarks don't tell the passes."""
    base = next((model for model in models if model.checkpoint == BASE), None)
    if base is None:
        return []
    known, names = passes(base.step.inputs["benchmarks"]), measure.benchmarks([base])
    samples: dict[tuple[str, Level], tuple[np.ndarray, np.ndarray]] = {}
    for (name, level), answers in measure.by_place(base).items():
        if name in known:
            fresh = measure.by_question(answers)
            before = [100 * known[name][question] / LEVEL_RUNS for question in fresh]
            samples[name, level] = np.array(before), np.array(list(fresh.values()))
    places = [(name, level) for name in names for level in PLACES if (name, level) in samples]
    found = [_shift(*place, [samples[place]]) for place in places]
    if len(names) > 1 and len(known.keys() & set(names)) == len(names):
        for level in PLACES:
            there = [samples[name, level] for name in names if (name, level) in samples]
            found += [_shift(AVERAGE, level, there)] if there else []
    return found


def _shift(benchmark: str, level: Level, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Shift:
    before, fresh = zip(*samples, strict=True)
    change = [after - earlier for earlier, after in samples]
    return Shift(benchmark, level, sum(map(len, fresh)), *(_estimate(parts) for parts in (before, fresh, change)))


def _estimate(samples: Sequence[np.ndarray]) -> Estimate:
    return Estimate(float(np.mean([sample.mean() for sample in samples])), *measure.interval(samples))


def naive(found: Sequence[Shift], rows: Sequence[Row]) -> dict[tuple[str, str, Level], float]:
    """(model, benchmark, level) -> the gain that subtracting the level-defining runs would show; for the base model too,
    which has learnt nothing."""
    before = {(shift.benchmark, shift.level): shift.defining.value for shift in found}
    return {
        (row.model, row.benchmark, row.level): row.accuracy - before[row.benchmark, row.level]
        for row in rows
        if (row.benchmark, row.level) in before
    }


def table(found: Sequence[Shift], rows: Sequence[Row], gains: Sequence[Gain]) -> Table | None:
    """Of the benchmark that stands for all: the base model on both kinds of runs, and each model's gain by either."""
    main = measure.main(rows)
    mine = [shift for shift in found if shift.benchmark == main]
    if not mine:
        return None
    models = list(dict.fromkeys(gain.model for gain in gains))
    wrong, right = naive(mine, rows), {(g.model, g.benchmark, g.level): g.gain for g in gains}
    first = ("level", "questions", "runs that defined the levels,\u00a0%", "fresh runs,\u00a0%", "shift [95\u00a0%]")
    lines = []
    for shift in mine:
        places = [(model, main, shift.level) for model in models]
        lines.append(
            (
                str(shift.level),
                form.count(shift.n),
                *(form.between(one.value, one.low, one.high) for one in (shift.defining, shift.fresh)),
                form.gain(shift.change.value, shift.change.low, shift.change.high),
                *(f"{form.signed(wrong.get(at))} / {form.signed(right.get(at))}" for at in places),
            )
        )
    return Table((*first, *(f"{model}: gain, naive / fresh" for model in models)), tuple(lines))


def told(found: Sequence[Shift], rows: Sequence[Row], models: Sequence[Model]) -> str:
    """What the two kinds of runs show, in a few sentences; '' where the benchmarks don't tell the passes."""
    base = next((model for model in models if model.checkpoint == BASE), None)
    by_level: Mapping[Level, Shift] = {shift.level: shift for shift in found if shift.benchmark == measure.main(rows)}
    ends = [by_level[level] for level in PLACES if level in by_level and level != ALL]
    if base is None or len(ends) < 2:
        return ""
    easy, hard = ends[0], ends[-1]

    def right(estimate: Estimate) -> str:
        return f"{form.percent(estimate.value)} %"

    return (
        f"Regression to the mean: on the {LEVEL_RUNS} runs that defined the levels (column passes of the benchmarks) the base "
        f"model is {right(easy.defining)} right on level {easy.level} and {right(hard.defining)} on level {hard.level}; on its "
        f"{base.settings['runs']} fresh runs (stage {base.step.stage.name}) {right(easy.fresh)} and {right(hard.fresh)}. It "
        f"has learnt nothing in between: {form.signed(easy.change.value)} and {form.signed(hard.change.value)} points come of "
        "sorting questions by runs that luck had a part in. On all levels together nothing is sorted, and the two differ by "
        f"{form.signed(by_level[ALL].change.value)}. A gain over the level-defining runs, naive in the table, has the shift in "
        "it, for every model; the gains of this report are over the fresh runs."
    )


def plain(found: Sequence[Shift], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For report.json: the shifts with the naive gain of every model."""
    wrong = naive(found, rows)
    return [
        {
            "benchmark": shift.benchmark,
            "level": shift.level,
            "n": shift.n,
            **{name: vars(getattr(shift, name)) for name in ("defining", "fresh", "change")},
            "naive_gain": {m: v for (m, b, level), v in wrong.items() if (b, level) == (shift.benchmark, shift.level)},
        }
        for shift in found
    ]

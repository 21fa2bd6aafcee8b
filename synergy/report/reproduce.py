"""A reproduction: our numbers in the paper's tables, each beside the paper's own with a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synergy.driver.plan import Plan, Step
from synergy.report import measure, paper, seeds, survey, verdict
from synergy.report.measure import ALL, AVERAGE, LEVELS, Level
from synergy.report.paper import What
from synergy.report.results import BASE, Answer, Model
from synergy.report.seeds import Strategy
from synergy.report.specs import Row, Spec
from synergy.report.survey import POOLED, WORDS, Survey
from synergy.report.verdict import Ends

if TYPE_CHECKING:
    from synergy.checkpoints import Checkpoint
    from synergy.compose import Task

FIVE = tuple(name for name in paper.BENCHMARKS if name != AVERAGE)
Z = 1.959964
"""Standard errors that a 95 % interval reaches to each side (normal approximation)."""


@dataclass(frozen=True)
class Made:
    """One evaluated model. name: how the tables call it; recipe: the row that it stands for, '' for none of the paper's."""

    name: str
    recipe: str
    task: Task
    plan: Plan
    base: Step
    step: Step


@dataclass(frozen=True)
class Entry:
    """All trainings of a row together. apart: what sets them apart from the paper's; '' for nothing."""

    name: str
    recipe: str
    made: Sequence[Made]
    surveys: Sequence[Survey]
    model: Model
    strategy: Strategy
    apart: str


@dataclass(frozen=True)
class Cell:
    """A number beside the paper's. item: level, word or ``all``; low, high: 95 % over questions; spread: standard deviation
    between trainings. Both values are in the unit of the spec, but for words, of which the paper prints totals."""

    model: str
    recipe: str
    benchmark: str
    item: str
    trainings: int
    ours: float | None
    low: float | None
    high: float | None
    spread: float | None
    paper: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.paper is None or self.item in WORDS else self.ours - self.paper


def end(name: str, recipe: str, task: Task, todo: Plan) -> Made:
    """The model that a plan ends with; for one that evaluates the base model alone, that."""
    steps = [step for step in todo.steps if step.stage.kind == "evaluate"]
    base = next(step for step in steps if step.stage.inputs["model"] == BASE)
    return Made(name, recipe, task, todo, base, steps[-1])


def given(checkpoints: Sequence[Checkpoint], task: Task, todo: Plan) -> list[Made]:
    """The models of a plan that evaluates given ones, the base first."""
    steps = {step.stage.inputs["model"]: step for step in todo.steps if step.stage.kind == "evaluate"}
    base = steps[BASE]
    return [
        Made(one.name, BASE if one.base else one.recipe, task, todo, base, base if one.base else steps[one.name])
        for one in checkpoints
    ]


def entries(found: Sequence[Made]) -> list[Entry]:
    """The rows in the order of what is given, each with all of its trainings. Every results.jsonl is read once."""
    read: dict[str, Survey] = {}
    for one in found:
        for step in (one.base, one.step):
            if step.key not in read:
                read[step.key] = survey.read(step.folder / "output" / "results.jsonl")
    groups: dict[str, list[Made]] = {}
    for one in found:
        groups.setdefault(one.name, []).append(one)
    return [_entry(name, made, read) for name, made in groups.items()]


def _entry(name: str, made: Sequence[Made], read: Mapping[str, Survey]) -> Entry:
    own = list({one.step.key: one for one in made}.values())
    pairs = []
    for one in own:
        base = Model(BASE, BASE, one.base, read[one.base.key].answers)
        same = one.step.key == one.base.key
        checkpoint = one.step.stage.inputs["model"]
        pairs.append((base, base if same else Model(name, checkpoint, one.step, read[one.step.key].answers)))
    surveys = [read[one.step.key] for one in own]
    strategy = seeds.summary(name, own[0].recipe, pairs)
    return Entry(name, own[0].recipe, own, surveys, replace(pairs[0][1], name=name), strategy, _apart(own[0], surveys))


def _apart(made: Made, surveys: Sequence[Survey]) -> str:
    """The weightiest of what sets a model, its data and its evaluation apart from the paper's; '' for nothing."""
    why = verdict.apart(made.task.cfg)
    for step in made.plan.steps:
        if not why and step.stage.name == "data" and step.entry is not None:
            why = verdict.other_data(made.recipe, int(step.entry.figures["train"]["records"]))
    judge = made.step.stage.settings.get("judge") or any(sum(one.judged.values()) for one in surveys)
    return why or ("" if judge else "no judge")


def cells(spec: Spec, found: Sequence[Entry]) -> list[Cell]:
    """The numbers of one table or figure: its rows in the paper's order, those that are there."""
    told = []
    for row in spec.rows:
        for entry in (one for one in found if one.recipe == row.recipe):
            told += _words(entry, row) if spec.what == "words" else _numbers(entry, row, spec)
    return told


def _numbers(entry: Entry, row: Row, spec: Spec) -> list[Cell]:
    ours = [name for name in dict.fromkeys(r.benchmark for r in entry.strategy.rows) if name != AVERAGE]
    places = [*(name for name in FIVE), *(name for name in ours if name not in FIVE), AVERAGE]
    levels: tuple[Level, ...] = LEVELS if spec.by_level else (ALL,)
    return [_number(entry, row, spec, name, level, ours) for name in places for level in levels]


def _number(entry: Entry, row: Row, spec: Spec, benchmark: str, level: Level, there: Sequence[str]) -> Cell:
    assert spec.what != "words"
    what: What = spec.what
    alone = benchmark == AVERAGE and len(there) == 1  # the average of one benchmark is that one
    at = there[0] if alone else benchmark
    value, ends, spread = _ours(entry, what, at, level)
    theirs = paper.value(row.theirs, benchmark, level, what)
    error = 0.0 if theirs is None else paper.precision(row.theirs, benchmark, level, what)
    why = entry.apart
    if not why and benchmark not in (*there, AVERAGE):
        why = "no such benchmark here"
    if not why and benchmark == AVERAGE and set(there) != set(FIVE):
        why = "the average of other benchmarks"
    around: Ends = (None, None) if value is None or spread is None else (value - spread, value + spread)
    told = verdict.verdict(value, theirs, (ends, around), error, why)
    return Cell(
        entry.name, entry.recipe, benchmark, str(level), entry.strategy.trainings, value, *ends, spread, theirs, told
    )


def _ours(entry: Entry, what: What, benchmark: str, level: Level) -> tuple[float | None, Ends, float | None]:
    """Our number, its interval over questions, and its standard deviation between trainings."""
    row = next((r for r in entry.strategy.rows if (r.benchmark, r.level) == (benchmark, level)), None)
    if row is None:
        return None, (None, None), None
    if what == "gain":
        gain = entry.strategy.gain(benchmark, level)
        spread = entry.strategy.spread.get((benchmark, level))
        return (gain.gain, (gain.ci_low, gain.ci_high), spread) if gain else (None, (None, None), None)
    value, spread = (row.accuracy, row.accuracy_std) if what == "accuracy" else (row.length_mean, row.length_std)
    spread = spread if entry.strategy.trainings > 1 else None  # of one training it is the spread between its runs
    error = _error(entry.surveys, what, benchmark, level)
    low, high = (None, None) if error is None else (value - Z * error, value + Z * error)
    return value, (low, high), spread


def _error(surveys: Sequence[Survey], what: What, benchmark: str, level: Level) -> float | None:
    """Standard error over questions of the mean over them, runs and trainings; of an average, that of the benchmarks' mean.
    None for a benchmark of one question."""
    questions: dict[str, dict[str, list[float]]] = {}
    for answer in (a for one in surveys for a in one.answers):
        if benchmark in (AVERAGE, answer.benchmark) and level in (ALL, answer.level):
            value = _value(answer, what)
            questions.setdefault(answer.benchmark, {}).setdefault(answer.id, []).append(value)
    means = [[float(np.mean(values)) for values in part.values()] for part in questions.values()]
    if any(len(part) < 2 for part in means):
        return None
    return math.sqrt(sum(float(np.var(part, ddof=1)) / len(part) for part in means)) / len(means)


def _value(answer: Answer, what: What) -> float:
    return 100.0 * answer.correct if what == "accuracy" else float(answer.tokens)


def _words(entry: Entry, row: Row) -> list[Cell]:
    """Of MathVision, as in the paper; where it is missing, of all benchmarks together."""
    benchmark = FIVE[0] if FIVE[0] in entry.surveys[0].responses else POOLED
    why = entry.apart or "the paper prints totals"
    told = []
    for word in WORDS:
        rates = [one.rate(word, benchmark) for one in entry.surveys]
        total = paper.words().get((row.theirs, word))
        theirs = None if total is None else float(total)
        value = float(np.mean(rates))
        said = verdict.verdict(value, theirs, (), why=why)
        spread = measure.std(rates)
        trainings = entry.strategy.trainings
        told.append(Cell(entry.name, entry.recipe, benchmark, word, trainings, value, None, None, spread, theirs, said))
    return told

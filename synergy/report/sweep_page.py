"""The report over the jobs of a sweep: its tables, figures and words, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synergy.driver import sharing
from synergy.driver.plan import Plan
from synergy.report import (
    bars,
    build,
    explorer,
    form,
    lines,
    pages,
    paper,
    regression,
    results,
    settings,
    sweep,
    tables,
    words,
)
from synergy.report.measure import ALL, LEVELS, PLACES
from synergy.report.results import BASE
from synergy.report.sweep import Sweep
from synergy.report.tables import Table

if TYPE_CHECKING:
    from synergy.compose import Task

SCHEMA = 1
SEEDS = (
    "One row per recipe; seeds: how many models were trained, each with its own. Accuracy, length and gain are means over "
    "them, ± the standard deviation between them. The interval of a gain is over questions: 95 %, for the mean over these "
    "seeds."
)
PAPER = (
    "Paper: Qwen2.5-VL-7B, plain mean of five other benchmarks (arXiv 2507.07562, Tables 1, 2 and 6). Another model, other "
    "questions: not comparable in size; shown for the order of the recipes."
)
COLUMNS = (
    "Here ± is the standard deviation between seeds. Cut off: share of responses that met the length limit. Answer found: "
    "share in which the checker found any answer."
)


def write(found: Sequence[tuple[Task, Plan]]) -> Path:
    """Writes the report over finished jobs and returns the page. Jobs that evaluate nothing have no part in it.

    Raises UserError for an unfinished stage or a run directory that can't be written.
    """
    there = [(task, todo) for task, todo in found if results.evaluates(todo)]
    for task, todo in there:
        with task.telling():
            results.require_finished(todo, f"synergy run {' '.join(task.words)}")
    plans = [todo for _, todo in there]
    place = plans[0].space.root / "reports" / sweep.name(plans)
    return pages.publish(place, lambda out: _write(sweep.gather(there), out))


def _write(told: Sweep, out: Path) -> None:
    figures = pages.in_base64(draw(told, out / "figures"))
    pages.files(out, "sweep", document(told), {**content(told), "figures": figures})


def draw(told: Sweep, out: Path) -> list[Path | None]:
    return [
        lines.tradeoff([one.row(told.main) for one in told.strategies], out / "tradeoff.png"),
        bars.gains(told.gains, out / "gains.png") if told.gains else None,
        bars.regression(told.shifts, out / "regression.png"),
        bars.accuracy(told.rows, out / "accuracy.png"),
        bars.length(told.rows, out / "length.png"),
    ]


def content(told: Sweep) -> dict[str, Any]:
    """What both templates show."""
    benchmarks = dict.fromkeys(row.benchmark for row in told.rows)
    return {
        "title": f"sweep over {len(told.outcomes)} jobs",
        "created": pages.date(told.created),
        "cost": build.cost(told.plan),
        "sharing": form.saving(sharing.saving(told.stages), len(told.outcomes)),
        "headline": headline(told),
        "where": words.where(told.rows),
        "strategies": strategies(told),
        "seeds": SEEDS,
        "paper": PAPER if any(one.name in paper.accuracies() for one in told.strategies) else "",
        "gains": levels(told),
        "jobs": jobs(told),
        "baseline": baseline(told),
        "regression": regression.table(told.shifts, told.rows, told.gains),
        "regression_label": regression.told(told.shifts, told.rows, told.models),
        "bars": words.BARS,
        "explorer": explorer.data(
            told.rows,
            told.gains,
            explorer.SEEDS,
            {(one.name, *place): std for one in told.strategies for place, std in one.spread.items()},
        ),
        "results": tables.results(told.rows, told.gains),
        "columns": COLUMNS,
        "levels": {name: tables.levels(told.rows, told.gains, name) for name in benchmarks},
        "level_rule": words.LEVEL_RULE,
        "questions": tables.questions(told.rows),
        "conditions": tables.conditions(told.models),
        "versions": tables.versions(told.plan),
    }


def headline(told: Sweep) -> list[str]:
    """What the question of the paper asks: which recipe, on which levels, at what length."""
    tuned = [one for one in told.strategies if one.gains]
    if not tuned:
        return []
    rows = {one.name: one.row(told.main) for one in told.strategies}
    gains = {(one.name, level): one.gain(told.main, level) for one in tuned for level in PLACES}
    best, *others = sorted(tuned, key=lambda one: -rows[one.name].accuracy)
    row, gain = rows[best.name], gains[best.name, ALL]
    told_best = (
        f"{best.name} answers {'most right' if others else 'right'}: {form.percent(row.accuracy, row.accuracy_std)} %"
    )
    if gain is not None:
        told_best += f", {form.gain(gain.gain, gain.ci_low, gain.ci_high)} points over the base model"
    if not others:
        return [f"{told_best}."]
    second = rows[others[0].name]
    told_best += f"; next is {others[0].name} with {form.percent(second.accuracy, second.accuracy_std)} %"
    by_level = []
    for level in LEVELS:
        there = {name: g.gain for (name, at), g in gains.items() if at == level and g is not None}
        if there:
            most = max(there, key=lambda name: there[name])
            by_level.append(f"level {level} {most} ({form.signed(there[most])})")
    short = min(tuned, key=lambda one: rows[one.name].length_mean)
    long = max(tuned, key=lambda one: rows[one.name].length_mean)
    lengths = [f"{one.name} with {form.tokens(rows[one.name].length_mean)}" for one in (short, long)]
    return [
        f"{told_best}.",
        f"Most gained per level, by the means: {', '.join(by_level)}.",
        f"Shortest is {lengths[0]} tokens on average, longest {lengths[1]}.",
    ]


def baseline(told: Sweep) -> str:
    if sum(one.recipe == BASE for one in told.strategies) > 1:
        return "Gains subtract, question by question, the runs of each job's own base model."
    return words.baseline(told.models)


def strategies(told: Sweep) -> Table:
    """A row per recipe: accuracy, gain and length on all questions, beside the paper's average."""
    ours = ("recipe", "seeds", "accuracy,\u00a0%", "gain over base [95\u00a0%]", "length, tokens", "cut off")
    known = paper.accuracies()
    beside = any(one.name in known for one in told.strategies)
    columns = (*ours, "paper's accuracy,\u00a0%, not comparable", "paper's gain, not comparable") if beside else ours
    lines = []
    for one in told.strategies:
        row, gain = one.row(told.main), one.gain(told.main)
        cells = (
            one.name,
            form.count(one.trainings),
            form.percent(row.accuracy, row.accuracy_std),
            form.gain(gain.gain, gain.ci_low, gain.ci_high) if gain else form.NONE,
            form.tokens(row.length_mean, row.length_std),
            form.share(row.truncated),
        )
        theirs = (form.percent(known.get(one.name)), form.signed(paper.gains().get((one.name, paper.ALL))))
        lines.append((*cells, *theirs) if beside else cells)
    return Table(columns, tuple(lines))


def levels(told: Sweep) -> Table | None:
    """The gain of every recipe on every level; None without any."""
    lines = []
    for one in told.strategies:
        if one.gains:
            cells = []
            for level in PLACES:
                gain = one.gain(told.main, level)
                cells.append(form.signed(gain.gain if gain else None, one.spread.get((told.main, level))))
            lines.append((one.name, *cells))
    return Table(("recipe", *(f"level {level}" for level in LEVELS), "all"), tuple(lines)) if lines else None


def jobs(told: Sweep) -> Table:
    """Every job by itself, and where its own report is."""
    lines = []
    for one in told.outcomes:
        figures = (form.percent(one.row.accuracy), form.signed(one.gain), form.tokens(one.row.length_mean))
        lines.append((one.task.name, f"reports/{one.report}", str(one.task.cfg.seed), *figures))
    columns = ("job", "its report", "seed", "accuracy,\u00a0%", "gain over base", "length, tokens")
    return Table(columns, tuple(lines), words=2)


def document(told: Sweep) -> dict[str, Any]:
    """report.json."""
    saving = sharing.saving(told.stages)
    return {
        "schema": SCHEMA,
        "sweep": told.name,
        "created": told.created,
        "stages": {"all": saving.stages, "distinct": saving.distinct, "saved_seconds": saving.seconds},
        "jobs": [
            {
                "job": one.task.name,
                "recipe": one.task.recipe,
                "seed": one.task.cfg.seed,
                "overrides": list(one.task.words),
                "report": one.report,
                "accuracy": one.row.accuracy,
                "length": one.row.length_mean,
                "gain": one.gain,
            }
            for one in told.outcomes
        ],
        "seeds": {one.name: one.trainings for one in told.strategies},
        "settings": settings.of_plan(told.plan, told.models),
        "baseline": baseline(told),
        "rows": [asdict(row) for row in told.rows],
        "regression": regression.plain(told.shifts, told.rows),
        "gains": [
            {**asdict(gain), "gain_std": one.spread.get((gain.benchmark, gain.level))}
            for one in told.strategies
            for gain in one.gains
        ],
    }

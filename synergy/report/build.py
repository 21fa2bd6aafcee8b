"""The report of a finished plan: its numbers, figures, tables and words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synergy.driver import identity
from synergy.driver.plan import Plan
from synergy.report import (
    bars,
    examples,
    explorer,
    form,
    history,
    lines,
    measure,
    merging,
    pages,
    regression,
    results,
    settings,
    tables,
    words,
)
from synergy.report.history import Span
from synergy.report.measure import Gain, Row
from synergy.report.regression import Shift
from synergy.report.results import Model

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Everything that is told, before it is written."""

    recipe: str
    created: str
    plan: Plan
    models: list[Model]
    rows: list[Row]
    gains: list[Gain]
    shifts: list[Shift]
    spans: list[Span]


def folder(todo: Plan) -> Path:
    """Where the report goes: named after the recipe and the keys of its final stages, so that other settings lie beside it."""
    used = {name for step in todo.steps for name in step.stage.inputs.values()}
    final = [step.key for step in todo.steps if step.stage.name not in used]
    return todo.space.root / "reports" / f"{todo.recipe}-{identity.sha(' '.join(final))[:8]}"


def write(todo: Plan) -> Path:
    """Writes the report and returns the page. Raises UserError for an unfinished stage or a run directory that can't be
    written."""
    results.require_finished(todo, f"synergy run recipe={todo.recipe}")
    return pages.publish(folder(todo), lambda out: _write(gather(todo), out))


def gather(todo: Plan) -> Report:
    """All numbers of a report."""
    found = results.models(todo)
    rows = [row for model in found for row in measure.table(model)]
    gains, shifts = measure.gains(found), regression.shifts(found)
    return Report(todo.recipe, pages.now(), todo, found, rows, gains, shifts, history.timeline(todo))


def _write(report: Report, out: Path) -> None:
    figures = pages.in_base64(draw(report, out / "figures"))
    pages.files(out, "report", document(report), {**content(report), "figures": figures})


def draw(report: Report, out: Path) -> list[Path | None]:
    """Draws the figures; None where there is nothing to show."""
    paths: list[Path | None] = []
    if report.gains:
        paths.append(bars.gains(report.gains, out / "gains.png"))
    paths.append(bars.accuracy(report.rows, out / "accuracy.png"))
    paths.append(bars.length(report.rows, out / "length.png"))
    paths.append(bars.regression(report.shifts, out / "regression.png"))
    at_ratio = merging.ratios(report.plan, report.models)
    paths.append(merging.sweep(report.rows, at_ratio, "accuracy", "accuracy in percent", out / "ratio_accuracy.png"))
    paths.append(merging.sweep(report.rows, at_ratio, "length_mean", "length in tokens", out / "ratio_length.png"))
    paths.append(merging.heatmap(merging.parents(report.plan), out / "parents.png"))
    sft, rl = history.curves(report.plan, "sft"), history.curves(report.plan, "rl")
    paths.append(lines.training(sft, rl, out / "training.png"))
    paths.append(lines.timeline(report.spans, out / "timeline.png"))
    return paths


def document(report: Report) -> dict[str, Any]:
    """report.json."""
    return {
        "schema": SCHEMA,
        "recipe": report.recipe,
        "created": report.created,
        "models": [settings.model(model) for model in report.models],
        "settings": settings.of_plan(report.plan, report.models),
        "baseline": words.baseline(report.models),
        "rows": [asdict(row) for row in report.rows],
        "gains": [asdict(gain) for gain in report.gains],
        "regression": regression.plain(report.shifts, report.rows),
        "stages": [_stage(span) for span in report.spans],
    }


def _stage(span: Span) -> dict[str, Any]:
    step, entry = span.step, span.step.entry
    assert entry is not None
    return {
        "stage": step.stage.name,
        "kind": step.stage.kind,
        "note": step.stage.note,
        "key": step.key,
        "folder": str(step.folder.relative_to(step.folder.parent.parent)),
        "started": datetime.fromtimestamp(entry.started, UTC).isoformat(timespec="seconds"),
        "seconds": entry.seconds,
        "peak_memory": entry.peak_memory,
        "attempt": entry.attempt,
        "reused": span.reused,
        "packages": entry.identity.get("packages", {}),
        "figures": pages.plain(entry.figures),
    }


def cost(todo: Plan) -> str:
    """Time and memory of a finished plan."""
    entries = [step.entry for step in todo.steps if step.entry is not None]
    largest = max(entries, key=lambda entry: entry.peak_memory)
    return (
        f"{len(entries)} stages, {form.seconds(sum(entry.seconds for entry in entries))} in all, "
        f"at most {form.memory(largest.peak_memory)} of memory (stage {largest.name})"
    )


def content(report: Report) -> dict[str, Any]:
    """What both templates show, in their words."""
    benchmarks = dict.fromkeys(row.benchmark for row in report.rows)
    return {
        "title": report.recipe,
        "created": pages.date(report.created),
        "cost": cost(report.plan),
        "headline": words.headline(report.rows, report.gains),
        "baseline": words.baseline(report.models),
        "regression": regression.table(report.shifts, report.rows, report.gains),
        "regression_label": regression.told(report.shifts, report.rows, report.models),
        "columns": words.columns(),
        "level_rule": words.LEVEL_RULE,
        "bars": words.BARS,
        "explorer": explorer.data(report.rows, report.gains),
        "results": tables.results(report.rows, report.gains),
        "paper": tables.paper_gains(report.models, report.gains),
        "paper_label": words.PAPER_LABEL,
        "levels": {name: tables.levels(report.rows, report.gains, name) for name in benchmarks},
        "parents": merging.table(merging.parents(report.plan)),
        "parents_label": words.PARENTS,
        "training": tables.training(report.plan.steps),
        "stages": tables.stages(report.spans),
        "questions": tables.questions(report.rows),
        "conditions": tables.conditions(report.models),
        "versions": tables.versions(report.plan),
        "examples": examples.choose(report.models),
        "models": [model.name for model in report.models],
    }

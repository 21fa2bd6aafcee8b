"""Builds the report of a finished plan: report.json, report.md, a self-contained report.html, and figures as PNG."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from synergy.driver import identity
from synergy.driver.plan import Plan
from synergy.errors import UserError
from synergy.report import bars, examples, form, history, lines, measure, merging, results, tables, words
from synergy.report.history import Span
from synergy.report.measure import Gain, Row
from synergy.report.results import Model

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Report:
    """Everything that is told, before it is written."""

    recipe: str
    created: str
    plan: Plan
    models: list[Model]
    rows: list[Row]
    gains: list[Gain]
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
    place = folder(todo)
    aside = place.with_name(f".{place.name}-{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "figures").mkdir(parents=True)
        _write(gather(todo), aside)
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
    except OSError as error:
        raise UserError(
            f"the report can't be written to {place}: {error.strerror or error}; free space or set run.dir"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place / "report.html"


def gather(todo: Plan) -> Report:
    """All numbers of a report."""
    found = results.models(todo)
    rows = [row for model in found for row in measure.table(model)]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(todo.recipe, created, todo, found, rows, measure.gains(found), history.timeline(todo))


def _write(report: Report, out: Path) -> None:
    figures = draw(report, out / "figures")
    text = json.dumps(document(report), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    told = {**content(report), "figures": figures}
    for name, escaped in (("report.md", False), ("report.html", True)):
        (out / name).write_text(_render(name, escaped, told), encoding="utf-8")


def draw(report: Report, out: Path) -> dict[str, str]:
    """Draws the figures; returns name -> PNG in base64, of those that there is something to show in."""
    paths: list[Path | None] = []
    if report.gains:
        paths.append(bars.gains(report.gains, out / "gains.png"))
    paths.append(bars.accuracy(report.rows, out / "accuracy.png"))
    paths.append(bars.length(report.rows, out / "length.png"))
    at_ratio = merging.ratios(report.plan, report.models)
    paths.append(merging.sweep(report.rows, at_ratio, "accuracy", "accuracy in percent", out / "ratio_accuracy.png"))
    paths.append(merging.sweep(report.rows, at_ratio, "length_mean", "length in tokens", out / "ratio_length.png"))
    paths.append(merging.heatmap(merging.parents(report.plan), out / "parents.png"))
    sft, rl = history.curves(report.plan, "sft"), history.curves(report.plan, "rl")
    paths.append(lines.training(sft, rl, out / "training.png"))
    paths.append(lines.timeline(report.spans, out / "timeline.png"))
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in paths if path is not None}


def document(report: Report) -> dict[str, Any]:
    """report.json."""
    return {
        "schema": SCHEMA,
        "recipe": report.recipe,
        "created": report.created,
        "models": [_model(model) for model in report.models],
        "baseline": words.baseline(report.models),
        "rows": [asdict(row) for row in report.rows],
        "gains": [asdict(gain) for gain in report.gains],
        "stages": [_stage(span) for span in report.spans],
    }


def _model(model: Model) -> dict[str, Any]:
    told = {name: model.settings[name] for name in ("runs", "sampling", "instruction")}
    return {"model": model.name, "checkpoint": model.checkpoint, "stage": model.step.stage.name, **told}


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
        "figures": plain(entry.figures),
    }


def plain(value: Any) -> Any:
    """A JSON value without NaN and infinities, which JSON lacks: a diverged loss becomes null."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content(report: Report) -> dict[str, Any]:
    """What both templates show, in their words."""
    spans, benchmarks = report.spans, dict.fromkeys(row.benchmark for row in report.rows)
    entries = [span.step.entry for span in spans if span.step.entry is not None]
    largest = max(entries, key=lambda entry: entry.peak_memory)
    return {
        "recipe": report.recipe,
        "created": report.created.replace("T", " ").replace("+00:00", " UTC"),
        "cost": f"{len(spans)} stages, {form.seconds(sum(span.seconds for span in spans))} in all, "
        f"at most {form.memory(largest.peak_memory)} of memory (stage {largest.name})",
        "headline": words.headline(report.rows, report.gains),
        "baseline": words.baseline(report.models),
        "columns": words.columns(),
        "level_rule": words.LEVEL_RULE,
        "bars": words.BARS,
        "results": tables.results(report.rows, report.gains),
        "paper": tables.paper_gains(report.models, report.gains),
        "paper_label": words.PAPER_LABEL,
        "levels": {name: tables.levels(report.rows, report.gains, name) for name in benchmarks},
        "parents": merging.table(merging.parents(report.plan)),
        "parents_label": words.PARENTS,
        "training": tables.training(report.plan.steps),
        "stages": tables.stages(spans),
        "questions": tables.questions(report.rows),
        "conditions": tables.conditions(report.models),
        "versions": tables.versions(report.plan),
        "examples": examples.choose(report.models),
        "models": [model.name for model in report.models],
    }


def _render(name: str, escaped: bool, told: Mapping[str, Any]) -> str:
    """In HTML Jinja escapes every value: what models write is not ours to trust. Markdown escapes its own."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["escape_markdown"] = tables.escape
    return env.get_template(f"{name}.j2").render(told)

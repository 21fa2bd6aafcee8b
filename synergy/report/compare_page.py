"""The page over several finished reports: the settings that differ, then their numbers and the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from synergy.driver import identity
from synergy.report import bars, compare, compare_tables, explorer, pages, style
from synergy.report.build import SCHEMA
from synergy.report.compare import Comparison
from synergy.report.measure import Gain, Row
from synergy.report.stored import Told

WHATS = ("accuracy", "gain", "length")
NO_INTERVAL = (
    "A difference has no interval: reports keep no single answers, so questions can't be paired. One that is smaller than the "
    "± or the intervals of either side is not told apart from none."
)
WAY_OUT = "copy the first report to a folder of yours"


def write(words: Sequence[str]) -> Path:
    """Writes ``compare-<id>`` beside the first report and returns the page. Raises UserError for what can't be compared or
    written."""
    told = compare.of_words(words)
    first = told.reports[0].file.resolve()
    digest = identity.sha(" ".join(identity.sha(one.file.read_text(encoding="utf-8")) for one in told.reports))
    home = first.parent.parent if first.name == "report.json" else first.parent
    return pages.publish(
        home / f"compare-{digest[:8]}", lambda out: _write(told, f"compare-{digest[:8]}", out), WAY_OUT
    )


def _write(told: Comparison, name: str, out: Path) -> None:
    created = pages.now()
    figures = pages.in_base64(draw(told, out / "figures"))
    shown = {**content(told), "created": pages.date(created), "figures": figures}
    pages.files(out, "compare", document(told, name, created), shown)


def _labels(told: Comparison) -> dict[str, tuple[Told, str, int]]:
    """``sft (A)`` -> its report, its name there, and the report's number; those of a pair stand together."""
    return {
        f"{name} ({one.letter})": (one, name, number)
        for pair in told.pairs
        for number, (one, name) in enumerate(zip(told.reports, pair.names, strict=True))
        if name is not None
    }


def _all(told: Comparison) -> tuple[list[Row], list[Gain]]:
    """Rows and gains of all reports under names that tell them apart."""
    rows: list[Row] = []
    gains: list[Gain] = []
    for label, (one, name, _) in _labels(told).items():
        rows += [replace(row, model=label) for row in one.rows.values() if row.model == name]
        gains += [replace(gain, model=label) for gain in one.gains.values() if gain.model == name]
    return rows, gains


def draw(told: Comparison, out: Path) -> list[Path | None]:
    """Figures for Markdown and a page without scripts; none where there are more models than colours."""
    rows, gains = _all(told)
    if len(_labels(told)) > len(style.RECIPES):
        return []
    return [
        bars.gains(gains, out / "gains.png") if gains else None,
        bars.accuracy(rows, out / "accuracy.png"),
        bars.length(rows, out / "length.png"),
    ]


def chart(told: Comparison) -> dict[str, Any]:
    """A recipe has its colour in all reports: full in the first, light in the second, hollow in the third."""
    labels, (rows, gains) = _labels(told), _all(told)
    kinds = [explorer.SEEDS if one.final is None else explorer.RUNS for one in told.reports]
    spread = kinds[0] if all(kind is kinds[0] for kind in kinds) else explorer.MIXED
    stds = {
        (label, benchmark, level): std
        for label, (one, name, _) in labels.items()
        for (model, benchmark, level), std in one.gain_std.items()
        if model == name
    }
    looks = {label: explorer.Look(name, number % 3) for label, (_, name, number) in labels.items()}
    return explorer.data(rows, gains, spread, stds, looks)


def content(told: Comparison) -> dict[str, Any]:
    """What both templates show."""
    alone = []
    for number, one in enumerate(told.reports):
        left = [name for name in one.models if name not in {pair.names[number] for pair in told.pairs}]
        alone += [f"{', '.join(left)} ({one.letter})"] if left else []
    return {
        "title": " against ".join(f"{one.title} ({one.letter})" for one in told.reports),
        "cost": f"{len(told.reports)} reports, {len(told.pairs)} models compared",
        "headline": compare_tables.headline(told),
        "explorer": chart(told),
        "reports": compare_tables.reports(told),
        "differ": compare_tables.differing(told),
        "alone": f"Without a counterpart, so not compared: {'; '.join(alone)}." if alone else "",
        "no_interval": NO_INTERVAL,
        "tables": {
            name: {explorer.LABELS[what]: compare_tables.levels(told, name, what) for what in WHATS}
            for name in told.benchmarks
        },
    }


def document(told: Comparison, name: str, created: str) -> dict[str, Any]:
    """report.json."""
    rows = []
    for pair, benchmark, level in told.places():
        values, changes = {}, {}
        for number, (one, model) in enumerate(zip(told.reports, pair.names, strict=True)):
            values[one.letter] = {what: one.figure(what, (model or "", benchmark, level)) for what in WHATS}
            changes[one.letter] = {what: told.change(pair, number, what, benchmark, level) for what in WHATS}
        del changes[told.reports[0].letter]
        where = {"models": list(pair.names), "benchmark": benchmark, "level": level}
        rows.append({**where, "values": values, "differences": changes})
    return {
        "schema": SCHEMA,
        "compare": name,
        "created": created,
        "reports": [
            {"letter": one.letter, "report": one.name, "of": one.title, "created": one.created} for one in told.reports
        ],
        "settings_that_differ": dict(compare.differing(told.reports)),
        "rows": rows,
    }

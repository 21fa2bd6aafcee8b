"""The report on a preparation: what was found, with examples, and how long the texts are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synergy.config import Config
from synergy.data import problems
from synergy.data.part import Part
from synergy.data.portion import Rules
from synergy.data.told import Told
from synergy.report import form, pages, style
from synergy.report.tables import Table

BINS = 40
SHOWN = 3
"""Examples of each check and outcome."""
COLOURS = {"prompt": "#0072B2", "trace": "#D55E00", "images": "#009E73"}


def write(cfg: Config, parts: Sequence[Part], told: Told, rules: Rules, out: Path, seconds: float) -> None:
    """report/report.html, report.md, report.json and the figure below ``out``."""
    place = out / "report"
    (place / "figures").mkdir(parents=True)
    lengths = {name: values for name, values in told.lengths.items() if any(values)}
    drawn = draw(lengths, rules, place / "figures" / "tokens.png") if lengths else None
    created = pages.now()
    shown = {
        "title": "Prepared data",
        "created": pages.date(created),
        "cost": f"{len(parts)} source{'s' * (len(parts) != 1)}, {form.seconds(seconds)}",
        "headline": _headline(told),
        "sources": _sources(parts, told),
        "checks": _checks(told, rules),
        "examples": _examples(told),
        "lengths": _lengths(lengths),
        "figures": pages.in_base64([drawn]),
        "model": f"Tokens are those of {cfg.model.path}; the figure has the rows that are kept.",
    }
    document = {
        "schema": 1,
        "created": created,
        "rows": dict(told.rows),
        "kept": dict(told.kept),
        "problems": [{"check": c, "outcome": o, "rows": n} for (c, o), n in told.found.items()],
        "policies": dict(rules.policies),
        "files": told.files,
    }
    pages.files(place, "data", document, shown)


def _headline(told: Told) -> list[str]:
    rows, kept = sum(told.rows.values()), sum(told.kept.values())
    if told.fails:
        return [f"Nothing was written: {sum(told.fails.values()):,} problems in {rows:,} rows under checks that fail."]
    mended = sum(count for (_, outcome), count in told.found.items() if outcome == "repaired")
    found = [f"{kept:,} of {rows:,} rows kept; {rows - kept:,} left out, problems repaired: {mended:,}."]
    return found + ["Every row passed every check."] * (not told.found)


def _sources(parts: Sequence[Part], told: Told) -> Table:
    rows = []
    for part in parts:
        name = part.source.name
        read, kept = told.rows[name], told.kept[name]
        words = (name, f"{part.source.into}; {part.source.layout}, {'read' if part.new else 'reused'}")
        rows.append((*words, form.count(read), form.count(kept), form.count(read - kept)))
    return Table(("source", "into; layout", "rows", "kept", "left out"), tuple(rows), words=2)


def _checks(told: Told, rules: Rules) -> Table:
    """Those that found something first."""
    rows = []
    for name, what in problems.CHECKS.items():
        found = [(outcome, told.found[name, outcome]) for outcome in ("fails", "dropped", "repaired")]
        words = ", ".join(f"{form.count(count)}\u00a0{FOUND[outcome]}" for outcome, count in found if count)
        rows.append((name, rules.policies[name], words or form.NONE, what))
    rows.sort(key=lambda row: row[2] == form.NONE)
    return Table(("check", "policy", "found", "what it looks for"), tuple(rows), words=4)


FOUND = {"fails": "not let\u00a0through", "dropped": "left\u00a0out", "repaired": "repaired"}


def _examples(told: Told) -> Table | None:
    rows = [
        (f"{check}, {FOUND[outcome]}", what, f"{source}: {where}" + (f", column {column}" if column else ""))
        for (check, outcome), some in told.examples.items()
        for source, where, column, what in some[:SHOWN]
    ]
    columns = ("check", "what", "where")
    return Table(columns, tuple(rows), words=len(columns)) if rows else None


def _lengths(lengths: dict[str, list[int]]) -> Table | None:
    rows = []
    for name, values in lengths.items():
        there = sorted(value for value in values if value)
        middle, high = there[len(there) // 2], there[min(len(there) - 1, len(there) * 99 // 100)]
        cells = (form.tokens(sum(there) / len(there)), *map(form.count, (middle, high, there[-1], sum(there))))
        rows.append((name, form.count(len(there)), *cells))
    columns = ("tokens of", "rows", "mean", "median", "99 %", "longest", "all")
    return Table(columns, tuple(rows)) if rows else None


def draw(lengths: dict[str, list[int]], rules: Rules, path: Path) -> Path:
    """Histograms of token lengths, a panel per field, with the limits that apply to them."""
    limits: dict[str, tuple[str, int | None]] = {
        "prompt": ("max_prompt_length", rules.max_prompt),
        "trace": ("cutoff_len", rules.cutoff_len),
    }
    with style.look():
        drawn = style.figure(1.7 * len(lengths))
        for number, (name, values) in enumerate(lengths.items(), start=1):
            axes: Any = drawn.add_subplot(len(lengths), 1, number)
            there = [value for value in values if value]
            width = max(1, -(-(max(there) - min(there) + 1) // BINS))
            edges = range(min(there), max(there) + width + 1, width)
            axes.hist(there, bins=[edge - 0.5 for edge in edges], color=COLOURS[name])
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_title(f"{name}, {len(there):,} rows")
            style.grid(axes)
            what, limit = limits.get(name, ("", None))
            if limit and limit < 4 * max(there):
                axes.axvline(limit, color=style.INK, linewidth=1, linestyle="--")
                axes.annotate(f"{what} ", (limit, axes.get_ylim()[1]), va="top", ha="right")
            axes.set_ylabel("rows")
        axes.set_xlabel("tokens")
        return style.save(drawn, path)

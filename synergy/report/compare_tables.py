"""The tables and the headline of a comparison."""

from __future__ import annotations

from synergy.report import compare, form, pages
from synergy.report.compare import Comparison
from synergy.report.measure import ALL, LEVELS, PLACES, Level
from synergy.report.stored import Told
from synergy.report.tables import Table

SOME = 3
"""Sentences in the headline."""


def headline(told: Comparison) -> list[str]:
    """The largest differences in accuracy to the first report, on the benchmark that stands for all."""
    benchmark, first = told.benchmarks[0], told.reports[0]
    found = []
    for pair in told.pairs:
        for number, one in enumerate(told.reports[1:], 1):
            change = told.change(pair, number, "accuracy", benchmark, ALL)
            if change:
                after, before = (
                    at.rows[name or "", benchmark, ALL]
                    for at, name in ((one, pair.names[number]), (first, pair.names[0]))
                )
                text = (
                    f"{pair.label}, {benchmark}: {form.signed(change)} points from {first.letter} to {one.letter} "
                    f"({form.percent(before.accuracy)} to {form.percent(after.accuracy)} % right), "
                    f"{form.tokens(after.length_mean)} tokens instead of {form.tokens(before.length_mean)}."
                )
                found.append((abs(change), text))
    return [text for _, text in sorted(found, key=lambda one: -one[0])[:SOME]] or [
        f"On {benchmark}, all compared models answer equally many right."
    ]


def reports(told: Comparison) -> Table:
    """Which reports are compared."""
    lines = ((one.letter, one.name, one.title, pages.date(one.created)) for one in told.reports)
    return Table(("", "report", "of", "written"), tuple(lines), words=4)


def differing(told: Comparison) -> Table | None:
    """The settings that differ; None without any."""
    lines = tuple((name, *values) for name, values in compare.differing(told.reports))
    letters = [one.letter for one in told.reports]
    return Table(("setting", *letters), lines, words=1 + len(letters)) if lines else None


def levels(told: Comparison, benchmark: str, what: str) -> Table | None:
    """Every pair on one benchmark: a line per report and one per difference to the first; None without figures."""
    lines, first = [], told.reports[0]
    for pair in told.pairs:
        changes = {
            number: [told.change(pair, number, what, benchmark, level) for level in PLACES]
            for number in range(1, len(told.reports))
        }
        changes = {number: row for number, row in changes.items() if any(change is not None for change in row)}
        for number in (0, *changes) if changes else ():
            one, name = told.reports[number], pair.names[number] or ""
            lines.append((pair.label, one.letter, *(_cell(one, name, benchmark, level, what) for level in PLACES)))
            if number:
                cells = [form.NONE if c is None else _signed(c, what) for c in changes[number]]
                lines.append((pair.label, f"{one.letter} − {first.letter}", *cells))
    end = "all [95\u00a0%]" if what == "gain" else "all"
    columns = ("model", "report", *(f"level {level}" for level in LEVELS), end)
    return Table(columns, tuple(lines), words=2) if lines else None


def _signed(change: float, what: str) -> str:
    """Points with a decimal; tokens as they are written elsewhere, with a sign."""
    if what != "length":
        return form.signed(change)
    return form.signed(change) if abs(change) < 99.95 else f"{'−' if change < 0 else '+'}{form.tokens(abs(change))}"


def _cell(one: Told, name: str, benchmark: str, level: Level, what: str) -> str:
    place = (name, benchmark, level)
    row, gain = one.rows.get(place), one.gains.get(place)
    if what == "gain":
        if gain is None:
            return form.NONE
        ends = (gain.ci_low, gain.ci_high)
        return form.gain(gain.gain, *ends) if level == ALL else form.signed(gain.gain, one.gain_std[place])
    if row is None:
        return form.NONE
    if what == "accuracy":
        return form.percent(row.accuracy, row.accuracy_std)
    return form.tokens(row.length_mean, row.length_std)

"""What the chart at the top of a page shows: a report's rows and gains as one JSON value, which ``static/explorer.js`` draws.

Numbers are written here, so that the chart says them exactly as the tables do.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synergy.report import form, pages, paper, style
from synergy.report.measure import AVERAGE, PLACES, Gain, Level, Row

RUNS = {"accuracy": "between runs", "length": "between responses", "gain": ""}
SEEDS = dict.fromkeys(("accuracy", "length", "gain"), "between seeds")
MIXED = {"accuracy": "between runs or seeds", "length": "between responses or seeds", "gain": "between seeds"}
"""What a standard deviation is between: of a recipe's rows, of a sweep's, and where both stand together."""
LABELS = {"accuracy": "accuracy, %", "length": "response length, tokens", "gain": "gain over base, points"}
PAPER = (
    "Diamonds: the paper's values (Qwen2.5-VL-7B on other benchmarks, arXiv 2507.07562). Not comparable in size; shown for "
    "the shape."
)
Place = tuple[str, str, Level]
"""Model, benchmark and level."""


@dataclass(frozen=True)
class Look:
    """recipe: whose colour and whose numbers of the paper a model has; fill: 0 full, 1 light, 2 hollow."""

    recipe: str
    fill: int = 0


def data(
    rows: Sequence[Row],
    gains: Sequence[Gain],
    spread: Mapping[str, str] = RUNS,
    gain_std: Mapping[Place, float | None] | None = None,
    looks: Mapping[str, Look] | None = None,
) -> dict[str, Any]:
    """A JSON value without NaN: ``models``, ``benchmarks`` (the average first), ``levels``, ``metrics`` and ``points``, which
    name them by their index.

    A point is one row, with a figure for each metric that it has: ``value``, the ends of its whisker (``low``, ``high``: one
    deviation, for a gain its 95 % interval), the ``paper``'s value, and all of it in words; None is what is not known.
    """
    names = list(dict.fromkeys(row.model for row in rows))
    benchmarks = sorted(dict.fromkeys(row.benchmark for row in rows), key=lambda name: name != AVERAGE)
    levels = [level for level in PLACES if any(row.level == level for row in rows)]
    looks = {name: Look(name) for name in names} | dict(looks or {})
    colours = style.colours(list(dict.fromkeys(looks[name].recipe for name in names)))
    by_place = {(gain.model, gain.benchmark, gain.level): gain for gain in gains}
    points: list[dict[str, Any]] = []
    for row in rows:
        place = (row.model, row.benchmark, row.level)
        figures = {"accuracy": _accuracy(row, spread), "length": _length(row, spread)}
        if place in by_place:
            figures["gain"] = _gain(by_place[place], (gain_std or {}).get(place), spread)
        for what, figure in figures.items():
            theirs = paper.value(looks[row.model].recipe, row.benchmark, row.level, what)  # type: ignore[arg-type]
            figure |= {"paper": theirs, "paper_text": "" if theirs is None else f"paper: {_short(what, theirs)}"}
        at = (names.index(row.model), benchmarks.index(row.benchmark), levels.index(row.level))
        points.append(dict(zip(("model", "benchmark", "level"), at, strict=True)) | {"n": row.n, **figures})
    known = any(
        figure.get("paper") is not None for point in points for figure in point.values() if isinstance(figure, dict)
    )
    found: dict[str, Any] = pages.plain(
        {
            "models": [
                {
                    "name": name,
                    "mark": string.ascii_letters[number] if number < len(string.ascii_letters) else "",
                    "colour": colours[looks[name].recipe],
                    "fill": looks[name].fill,
                }
                for number, name in enumerate(names)
            ],
            "benchmarks": benchmarks,
            "levels": [str(level) for level in levels],
            "metrics": [
                {"name": name, "label": LABELS[name], "note": _note(name, spread)}
                for name in ("accuracy", "length", "gain")
                if name != "gain" or gains
            ],
            "paper": PAPER if known else "",
            "points": points,
        }
    )  # fmt: skip
    return found


def _note(what: str, spread: Mapping[str, str]) -> str:
    return (
        "Whiskers: 95 % interval over questions."
        if what == "gain"
        else f"Whiskers: one standard deviation {spread[what]}."
    )


def _short(what: str, value: float) -> str:
    return {"accuracy": form.percent, "length": form.tokens, "gain": form.signed}[what](value)


def _figure(what: str, value: float, low: float | None, high: float | None, text: str) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "short": _short(what, value), "text": text}


def _around(value: float, std: float | None, most: float) -> tuple[float | None, float | None]:
    return (None, None) if std is None else (max(0.0, value - std), min(most, value + std))


def _accuracy(row: Row, spread: Mapping[str, str]) -> dict[str, Any]:
    more = "" if row.accuracy_std is None else f" ± {form.percent(row.accuracy_std)} {spread['accuracy']}"
    ends = _around(row.accuracy, row.accuracy_std, 100.0)
    return _figure("accuracy", row.accuracy, *ends, f"accuracy {form.percent(row.accuracy)} %{more}")


def _length(row: Row, spread: Mapping[str, str]) -> dict[str, Any]:
    more = "" if row.length_std is None else f" ± {form.tokens(row.length_std)} {spread['length']}"
    ends = _around(row.length_mean, row.length_std, math.inf)
    return _figure("length", row.length_mean, *ends, f"length {form.tokens(row.length_mean)} tokens{more}")


def _gain(gain: Gain, std: float | None, spread: Mapping[str, str]) -> dict[str, Any]:
    text = f"gain {form.signed(gain.gain)} points"
    if gain.ci_low is not None and gain.ci_high is not None:
        text += f", 95 % interval {form.signed(gain.ci_low)} to {form.signed(gain.ci_high)}"
    text += "" if std is None else f", ± {form.percent(std)} {spread['gain']}"
    return _figure("gain", gain.gain, gain.ci_low, gain.ci_high, text)

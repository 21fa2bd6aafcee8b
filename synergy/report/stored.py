"""A finished report, found by a path and read back from its report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.errors import UserError
from synergy.report import settings
from synergy.report.build import SCHEMA
from synergy.report.measure import PLACES, Gain, Level, Row

Place = tuple[str, str, Level]
"""Model, benchmark and level."""
WAY_OUT = "give a report's folder, its report.json, or a run directory with one report"


@dataclass(frozen=True)
class Told:
    """A report that was read. letter: what a comparison calls it; title: its recipe or sweep; final: the model that its
    recipe made, None in a sweep."""

    letter: str
    file: Path
    title: str
    created: str
    final: str | None
    rows: Mapping[Place, Row]
    gains: Mapping[Place, Gain]
    gain_std: Mapping[Place, float | None]
    settings: settings.Settings

    @property
    def name(self) -> str:
        """Run directory, reports, folder: enough to find it again."""
        return "/".join(self.file.resolve().parent.parts[-3:])

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model, _, _ in self.rows))

    def figure(self, what: str, place: Place) -> float | None:
        """accuracy in percent, gain in points, length in tokens; None where there is none."""
        if what == "gain":
            return self.gains[place].gain if place in self.gains else None
        row = self.rows.get(place)
        return None if row is None else row.accuracy if what == "accuracy" else row.length_mean


def find(word: str) -> Path:
    """The report.json that a word of the command line means. Raises UserError where there is none, or several."""
    path = Path(word).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"no such report: {word}; {WAY_OUT} (the report of a recipe is drawn by: synergy report recipe=NAME)"
        )
    if (path / "report.json").is_file():
        return path / "report.json"
    listed = [*path.glob("reports/*/report.json"), *path.glob("*/report.json")]
    found = sorted(
        (file for file in listed if not file.parent.name.startswith(("compare-", "."))),
        key=lambda file: -file.stat().st_mtime,
    )
    if not found:
        raise UserError(f"no report in {word}: neither report.json nor reports/*/report.json; {WAY_OUT}")
    if len(found) > 1:
        names = ", ".join(str(file.parent) for file in found)
        raise UserError(f"{word} holds {len(found)} reports; name one of them, newest first: {names}")
    return found[0]


def read(letter: str, file: Path) -> Told:
    """Raises UserError for a file that can't be read, is damaged, of another schema, or no report."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged, no JSON: {error}; draw the report anew") from error
    if not isinstance(told, dict) or "schema" not in told:
        raise UserError(f"{file} is no report: it has no schema; {WAY_OUT}")
    if told["schema"] != SCHEMA:
        raise UserError(
            f"{file} has schema {told['schema']!r}, this version reads {SCHEMA}; draw that report anew with this version"
        )
    if "compare" in told:
        raise UserError(f"{file} is a comparison itself; name the reports that it compares")
    try:
        rows, gains = [_row(one) for one in told["rows"]], [_gain(one) for one in told["gains"]]
        final = None if "sweep" in told else str(told["models"][-1]["model"]) if "models" in told else None
        return Told(
            letter,
            file,
            str(told.get("recipe") or told.get("sweep") or file.parent.name),
            str(told.get("created", "")),
            final,
            {(row.model, row.benchmark, row.level): row for row in rows},
            {(gain.model, gain.benchmark, gain.level): gain for gain, _ in gains},
            {(gain.model, gain.benchmark, gain.level): std for gain, std in gains},
            settings.of_document(told),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file} is no report as this version writes it ({type(error).__name__}: {error}); draw it anew"
        ) from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _maybe(value: Any) -> float | None:
    return None if value is None else _number(value)


def _place(told: Mapping[str, Any]) -> dict[str, Any]:
    if told["level"] not in PLACES:
        raise ValueError(f"{told['level']!r} is no level")
    return {"model": str(told["model"]), "benchmark": str(told["benchmark"]), "level": told["level"]}


def _row(told: Mapping[str, Any]) -> Row:
    checks: dict[str, Callable[[Any], Any]] = {
        "n": lambda value: int(_number(value)),
        **dict.fromkeys(("accuracy", "length_mean", "truncated", "extracted"), _number),
        **dict.fromkeys(("accuracy_std", "length_std"), _maybe),
    }
    return Row(**_place(told), **{name: check(told[name]) for name, check in checks.items()})


def _gain(told: Mapping[str, Any]) -> tuple[Gain, float | None]:
    ends = (_maybe(told["ci_low"]), _maybe(told["ci_high"]))
    return Gain(**_place(told), gain=_number(told["gain"]), ci_low=ends[0], ci_high=ends[1]), _maybe(
        told.get("gain_std")
    )

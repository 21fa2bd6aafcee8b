"""The paper's numbers (``synergy/report/paper``) for the recipes that have a counterpart there."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Literal

FOLDER = Path(__file__).parent / "paper"
ALL = "all"
AVERAGE = "average"
BENCHMARKS = {
    "MathVision": "mathvision",
    "MathVerse": "mathverse",
    "MathVista": "mathvista",
    "MMMU": "mmmu_val",
    "MMStar": "mmstar",
    AVERAGE: "avg",
}
"""Our name of a benchmark -> its column in the CSV files."""
What = Literal["accuracy", "gain", "length"]
_TABLES = {"base": "1", "sft": "1", "rl": "2"}
"""Where a recipe's main result stands; all others are in Table 6."""


@cache
def gains() -> dict[tuple[str, int | str], float]:
    """(recipe, level) -> mean gain over the five benchmarks of Figure 1; level ``all``: accuracy over base, from the tables."""
    found: dict[tuple[str, int | str], list[float]] = defaultdict(list)
    with (FOLDER / "figure1_gains.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            found[row["recipe"], int(row["level"])].append(float(row["gain_points"]))
    told: dict[tuple[str, int | str], float] = {place: mean(values) for place, values in found.items()}
    averages = accuracies()
    return told | {
        (recipe, ALL): average - averages["base"] for recipe, average in averages.items() if recipe != "base"
    }


@cache
def accuracies() -> dict[str, float]:
    """Recipe -> accuracy in percent, averaged over the five benchmarks."""
    with (FOLDER / "tables.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {row["recipe"]: float(row["avg"]) for row in rows if row["table"] == _TABLES.get(row["recipe"], "6")}


def knows(recipe: str) -> bool:
    return (recipe, 1) in gains()


def value(recipe: str, benchmark: str, level: int | str, what: What) -> float | None:
    """The paper's number, or None where it prints none. accuracy in percent and length in tokens are of all levels; gain, in
    points over its base model, is also by level (Figure 1, read off the picture)."""
    return _values().get((recipe, benchmark, level, what))


@cache
def _values() -> dict[tuple[str, str, int | str, str], float]:
    found: dict[tuple[str, str, int | str, str], float] = {}
    for file, what in (("tables.csv", "accuracy"), ("lengths.csv", "length")):
        with (FOLDER / file).open(newline="") as stream:
            for row in csv.DictReader(stream):
                for name, column in BENCHMARKS.items():
                    if row[column]:
                        found[row["recipe"], name, ALL, what] = float(row[column])
    for (recipe, name, level, what), number in list(found.items()):
        if what == "accuracy" and recipe != "base":
            found[recipe, name, level, "gain"] = number - found["base", name, level, what]
    names = {column: name for name, column in BENCHMARKS.items()}
    with (FOLDER / "figure1_gains.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            found[row["recipe"], names[row["benchmark"]], int(row["level"]), "gain"] = float(row["gain_points"])
    for (recipe, level), number in gains().items():
        found.setdefault((recipe, AVERAGE, level, "gain"), number)
    return found


def precision(recipe: str, benchmark: str, level: int | str, what: What) -> float:
    """How far the printed number may be off: half of its last digit, of both for a difference, or the reading error."""
    if level == ALL:
        return {"accuracy": 0.05, "gain": 0.1, "length": 0.5}[what]
    return _reading().get((recipe, benchmark, level), 0.0)


@cache
def _reading() -> dict[tuple[str, str, int | str], float]:
    """(recipe, benchmark, level) -> error of reading Figure 1; that of an average is at most the mean of its parts'."""
    names = {column: name for name, column in BENCHMARKS.items()}
    found: dict[tuple[str, str, int | str], list[float]] = defaultdict(list)
    with (FOLDER / "figure1_gains.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            for name in (names[row["benchmark"]], AVERAGE):
                found[row["recipe"], name, int(row["level"])].append(float(row["reading_error"]))
    return {place: mean(errors) for place, errors in found.items()}


@cache
def words() -> dict[tuple[str, str], int]:
    """(recipe, word) -> occurrences in all responses to MathVision, a total as printed in Table 5."""
    with (FOLDER / "words_mathvision.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(name, row["word"]): int(row[name]) for row in rows for name in row if name not in ("table", "word")}

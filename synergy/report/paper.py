"""The paper's numbers (``synergy/report/paper``) for the recipes that have a counterpart there."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean

FOLDER = Path(__file__).parent / "paper"
ALL = "all"
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

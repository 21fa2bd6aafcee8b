"""Which kills a run survives: every kind of boundary of every recipe, with doubles of the frameworks (tests/test_crashes.py).

    python benchmarks/crash_matrix.py [recipe ...]

A case is one kill and the same command again. It survives if the result is the uninterrupted run's, at most one save interval
was repeated, nothing is left, and no stage is in the ledger twice.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_crashes  # noqa: E402 - from the tests' folder
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

Cases = Counter[tuple[str, str]]


def main(recipes: list[str]) -> int:
    cases, survived = Cases(), Cases()
    wrongs = []
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as tmp:
            for point, wrong in test_crashes.matrix(recipe, Path(tmp)):
                cases[point, recipe] += 1
                survived[point, recipe] += wrong is None
                wrongs += [f"{recipe}, {point}: {wrong}"] if wrong else []
    table = Table("kill point", *recipes, "all", box=None, pad_edge=False, header_style="bold")
    for point in sorted({point for point, _ in cases}):
        table.add_row(
            point, *(_cell(survived[point, r], cases[point, r]) for r in recipes), _sum(survived, cases, point)
        )
    table.add_row("all", *(_sum(survived, cases, recipe=r) for r in recipes), _sum(survived, cases))
    Console(width=160).print(table)
    print("\n".join([*wrongs, f"{survived.total()} of {cases.total()} cases survived"]))
    return int(bool(wrongs))


def _sum(survived: Cases, cases: Cases, point: str | None = None, recipe: str | None = None) -> str:
    """Over all kill points or recipes where none is given."""
    places = [(p, r) for p, r in cases if point in (None, p) and recipe in (None, r)]
    return _cell(sum(survived[place] for place in places), sum(cases[place] for place in places))


def _cell(good: int, tried: int) -> str:
    return f"{good}/{tried}" if tried else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(test_crashes.RECIPES)))

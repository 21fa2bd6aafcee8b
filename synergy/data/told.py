"""What a preparation found, counted while rows go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5
"""Of each check and outcome that are shown."""
LENGTHS = ("prompt", "trace", "images")


@dataclass
class Told:
    """rows, kept: per source. found: per (check, outcome: fails, dropped or repaired). examples: of each (source, place,
    column, text). lengths: field -> tokens of each row that is kept. files: rows of each framework's files."""

    rows: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[list[str]]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in LENGTHS})
    files: Counter[str] = field(default_factory=Counter)

    @property
    def fails(self) -> dict[str, int]:
        return {check: count for (check, outcome), count in self.found.items() if outcome == "fails"}

    def problem(self, check: str, outcome: str, example: list[str]) -> None:
        self.found[check, outcome] += 1
        some = self.examples.setdefault((check, outcome), [])
        if len(some) < EXAMPLES:
            some.append(example)

    def add(self, other: Told) -> None:
        """What another found, after this."""
        self.rows += other.rows
        self.kept += other.kept
        self.found += other.found
        self.files += other.files
        for key, some in other.examples.items():
            self.examples[key] = (self.examples.get(key, []) + some)[:EXAMPLES]
        for name, values in other.lengths.items():
            self.lengths[name] += values

    def row(self) -> dict[str, Any]:
        """As JSON holds it."""
        told = [[*key, count, self.examples[key]] for key, count in self.found.items()]
        counts = {"rows": self.rows, "kept": self.kept, "files": self.files}
        return {**counts, "found": told, "lengths": self.lengths}


def parse(row: Mapping[str, Any]) -> Told:
    """What ``Told.row`` gave."""
    found = {(check, outcome): (count, some) for check, outcome, count, some in row["found"]}
    return Told(
        Counter(row["rows"]),
        Counter(row["kept"]),
        Counter({key: count for key, (count, _) in found.items()}),
        {key: some for key, (_, some) in found.items()},
        row["lengths"],
        Counter(row["files"]),
    )

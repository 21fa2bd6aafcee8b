"""Several finished reports side by side: which models are compared, and in what settings the reports differ."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from synergy.errors import UserError
from synergy.report import stored
from synergy.report.measure import ALL, AVERAGE, PLACES, Level
from synergy.report.stored import Told


@dataclass(frozen=True)
class Pair:
    """Models that are compared: label for all, and each report's own name, None where it has none."""

    label: str
    names: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Reports A, B, ..., the first of which the others are compared with, and the models that they are compared by."""

    reports: list[Told]
    pairs: list[Pair]

    @property
    def benchmarks(self) -> list[str]:
        """Those that any pair has in common, the average first."""
        names = sorted(_benchmarks(self.reports[0]), key=lambda name: name != AVERAGE)
        return [name for name in names if any(common(self.reports, pair, name, ALL) for pair in self.pairs)]

    def places(self) -> Iterator[tuple[Pair, str, Level]]:
        """Where the first report and another one have a row."""
        for pair in self.pairs:
            for name in self.benchmarks:
                yield from ((pair, name, level) for level in PLACES if common(self.reports, pair, name, level))

    def change(self, pair: Pair, number: int, what: str, benchmark: str, level: Level) -> float | None:
        """Report ``number`` minus the first one; None where either has no figure."""
        before, after = (self.reports[at].figure(what, (pair.names[at] or "", benchmark, level)) for at in (0, number))
        return None if before is None or after is None else after - before


def of_words(words: Sequence[str]) -> Comparison:
    """Raises UserError for fewer than two reports, one of them twice, one that is none, or none of their rows in common."""
    if len(words) < 2:
        raise UserError(f"one report alone: {words[0]}; name a second one to compare it with")
    if len(words) > len(string.ascii_uppercase):
        raise UserError(f"{len(words)} reports are more than one page can compare; name fewer")
    files = [stored.find(word) for word in words]
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"the same report twice among {', '.join(words)}; name different ones")
    reports = [stored.read(letter, file) for letter, file in zip(string.ascii_uppercase, files, strict=False)]
    return Comparison(reports, _pairs(reports))


def _pairs(reports: Sequence[Told]) -> list[Pair]:
    """Models of the same name, and, where recipes differ, what each recipe made."""
    found = [Pair(name, tuple(name if name in one.models else None for one in reports)) for name in reports[0].models]
    finals = [one.final for one in reports]
    if None not in finals and len(set(finals)) > 1:
        found.append(Pair(" / ".join(map(str, finals)), tuple(finals)))
    found = [pair for pair in found if any(common(reports, pair, name, ALL) for name in _benchmarks(reports[0]))]
    if not found:
        has = (
            f"{one.letter} ({one.name}) has {', '.join(one.models)} on {', '.join(_benchmarks(one))}" for one in reports
        )
        raise UserError(f"no rows in common: {'; '.join(has)}")
    return found


def _benchmarks(one: Told) -> list[str]:
    return list(dict.fromkeys(benchmark for _, benchmark, _ in one.rows))


def common(reports: Sequence[Told], pair: Pair, benchmark: str, level: Level) -> bool:
    """Whether the first report and another one have such a row."""
    there = [(name, benchmark, level) in one.rows for one, name in zip(reports, pair.names, strict=True)]
    return there[0] and any(there[1:])


def differing(reports: Sequence[Told]) -> list[tuple[str, list[str]]]:
    """Settings in which reports differ, with each one's values in words. A stage's settings (``stage: name``) count where all
    have that stage."""
    groups = [{name.partition(": ")[0] for name in one.settings} for one in reports]
    found: list[tuple[str, list[str]]] = []
    for name in dict.fromkeys(name for one in reports for name in one.settings):
        values = [sorted(one.settings.get(name, [])) for one in reports]
        shared = ": " not in name or all(name.partition(": ")[0] in group for group in groups)
        if shared and any(value != values[0] for value in values):
            found.append((name, ["; ".join(value) or "–" for value in values]))
    for benchmark in dict.fromkeys(name for one in reports for name in _benchmarks(one)):
        sizes = [
            {row.n for (_, name, at), row in one.rows.items() if (name, at) == (benchmark, ALL)} for one in reports
        ]
        if any(size != sizes[0] for size in sizes):
            found.append((f"questions of {benchmark}", [", ".join(map(str, sorted(size))) or "none" for size in sizes]))
    return found

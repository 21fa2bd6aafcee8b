"""Selection and mixing: which rows become training data, by small steps that a YAML list names in order.

    - {without: easiest}          questions that every run solved; or zero_pass: those that none did
    - {level: [2, 3, 4]}          only questions of these difficulty levels
    - {passes: [1, 7]}            only questions with so many right runs, both ends included
    - {keep: shortest_correct}    of each question the shortest right response; or all_correct: every right one
      (with zero_pass: trace      a question without a right response gives the long trace that came with it)
    - {at_most: 2}                the first so many rows of each question
    - {mix: {a: 2, b: 1}}         the first rows of each source, as many as this ratio allows; sources are those of the
                                  records, or responses and traces
    - {shuffle: 0}                another order, by this seed

Each step is a pure function from rows to rows that tells why it drops what it drops. Rows hold no text (rows.py).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from synergy.data.rows import RECORDS, RESPONSES, TRACES, Row, known
from synergy.errors import UserError

DATA_MIXING = [{"keep": "all_correct", "zero_pass": "trace"}]
"""The paper's, whatever the format of the responses."""
Dropped = list[tuple[Row, str]]
Outcome = tuple[list[Row], Dropped]


def _split(rows: Sequence[Row], problem: Callable[[Row], str | None]) -> Outcome:
    told = [(row, problem(row)) for row in rows]
    return [row for row, why in told if why is None], [(row, why) for row, why in told if why is not None]


def _whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _need(good: bool, told: str) -> None:
    if not good:
        raise ValueError(told)


@dataclass(frozen=True)
class Without:
    without: str
    WORDS: ClassVar = ("easiest", "zero_pass")

    def __post_init__(self) -> None:
        _need(self.without in self.WORDS, f"one of {', '.join(self.WORDS)}")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        easiest = self.without == "easiest"
        why = "every run is right" if easiest else "no run is right"
        return _split(rows, lambda row: why if known(row, row.passes) == (row.runs if easiest else 0) else None)


@dataclass(frozen=True)
class Level:
    level: Sequence[int]

    def __post_init__(self) -> None:
        good = isinstance(self.level, list) and self.level and all(_whole(n, 1) and n <= 5 for n in self.level)
        _need(bool(good), "a list of levels from 1 to 5")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        return _split(rows, lambda row: None if known(row, row.level) in self.level else f"level {row.level}")


@dataclass(frozen=True)
class Passes:
    passes: Sequence[int]

    def __post_init__(self) -> None:
        good = isinstance(self.passes, list) and len(self.passes) == 2 and all(map(_whole, self.passes))
        _need(good and self.passes[0] <= self.passes[1], "two whole numbers, the least and the most right runs")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        least, most = self.passes
        return _split(rows, lambda r: None if least <= known(r, r.passes) <= most else f"{r.passes} of {r.runs} right")


@dataclass(frozen=True)
class Keep:
    keep: str
    zero_pass: str = "drop"
    WORDS: ClassVar = ("shortest_correct", "all_correct")

    def __post_init__(self) -> None:
        _need(self.keep in self.WORDS, f"keep is one of {', '.join(self.WORDS)}")
        _need(self.zero_pass in ("drop", "trace"), "zero_pass is drop or trace")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        best: dict[str, Row] = {}
        for row in rows:
            if row.origin == RECORDS:
                raise UserError(f"record {row.id!r} is no response: keep chooses among responses of a model")
            if row.correct and (row.id not in best or row.tokens < best[row.id].tokens):
                best[row.id] = row
        traced = {row.id for row in rows if row.origin == TRACES}
        bare = [row.id for row in rows if row.id not in best and row.id not in traced]
        if bare and self.zero_pass == "trace":
            raise UserError(
                f"record {bare[0]!r} needs a trace, since none of its responses was right, and has none: add 'trace' to its "
                "line in data.train, or leave the question out"
            )

        def problem(row: Row) -> str | None:
            if row.origin == TRACES:
                wanted = self.zero_pass == "trace" and row.id not in best
                return None if wanted else "a trace, not a response"
            if not row.correct:
                return "wrong answer"
            return "not the shortest" if self.keep == "shortest_correct" and row is not best[row.id] else None

        return _split(rows, problem)


@dataclass(frozen=True)
class AtMost:
    at_most: int

    def __post_init__(self) -> None:
        _need(_whole(self.at_most, 1), "a whole number from 1")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        seen: Counter[str] = Counter()

        def problem(row: Row) -> str | None:
            seen[row.id] += 1
            return f"row {seen[row.id]} of its question" if seen[row.id] > self.at_most else None

        return _split(rows, problem)


@dataclass(frozen=True)
class Mix:
    mix: Mapping[str, int]

    def __post_init__(self) -> None:
        good = isinstance(self.mix, dict) and self.mix and all(_whole(n, 1) for n in self.mix.values())
        _need(bool(good), "whole numbers from 1 by source, such as {a: 2, b: 1}")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        by_origin = set(self.mix) <= {RESPONSES, TRACES}
        there = Counter(row.origin if by_origin else row.source for row in rows)
        share = min(there[name] // part for name, part in self.mix.items())
        if not share:
            raise UserError(f"too few rows for this ratio; sources and their rows: {dict(there)}")
        left = {name: share * part for name, part in self.mix.items()}

        def problem(row: Row) -> str | None:
            name = row.origin if by_origin else row.source
            left[name] = left.get(name, 0) - 1
            return None if left[name] >= 0 else f"more of {name!r} than the ratio has"

        return _split(rows, problem)


@dataclass(frozen=True)
class Shuffle:
    shuffle: int

    def __post_init__(self) -> None:
        _need(_whole(self.shuffle), "a seed, a whole number")

    def __call__(self, rows: Sequence[Row]) -> Outcome:
        order = list(rows)
        random.Random(self.shuffle).shuffle(order)
        return order, []


Step = Without | Level | Passes | Keep | AtMost | Mix | Shuffle
STEPS: Mapping[str, type[Step]] = {
    "without": Without, "level": Level, "passes": Passes, "keep": Keep, "at_most": AtMost, "mix": Mix, "shuffle": Shuffle,
}  # fmt: skip


def parse(given: Any, where: str) -> list[Step]:
    """Steps from the config at ``where``. Raises UserError that names the step."""
    if not isinstance(given, list):
        raise UserError(f"{where} is a list of steps, not {given!r}; each is one of: {', '.join(STEPS)}")
    return [_step(value, f"{where}[{index}]={json.dumps(value, default=str)}") for index, value in enumerate(given)]


def _step(given: Any, where: str) -> Step:
    verbs = [name for name in STEPS if name in given] if isinstance(given, dict) else []
    if len(verbs) != 1:
        raise UserError(f"{where}: a step is a mapping with one of: {', '.join(STEPS)}")
    step = STEPS[verbs[0]]
    if unknown := set(given) - {field.name for field in fields(step)}:
        raise UserError(f"{where}: {', '.join(sorted(map(str, unknown)))} is no option of {verbs[0]}")
    try:
        return step(**given)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error

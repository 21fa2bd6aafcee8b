"""Questions over handwritten digits: the tiny scale's data, made from scikit-learn's copy of the UCI digits.

An image is a strip of five 28x28 cells, the first n of them holding a digit (no framework ever resizes it: its sides are
multiples of 28, and 3920 pixels are enough). A question asks for one computation over the digits; `trace` reads them and
names every partial result, `short` answers at once. `steps` counts the lines of reasoning, from 1 (read a number) to n
(read, then n - 1 partial results).

No digit image serves two splits, and no two records of a call share digits, question and options.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from synergy.data import records

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 28  # pixels: one visual token of Qwen2.5-VL (patch 14, merge 2)
CELLS = 5
SPLITS = {"train": 0.62, "val": 0.06, "bench_open": 0.16, "bench_choice": 0.16}  # shares of the digit images
KINDS = {
    "number": "Which number do the digits form?",
    "sum": "What is the sum of the digits?",
    "range": "What is the largest digit minus the smallest?",
    "alternate": "Subtract and add the digits in turn. What is the result?",
    "pairs": "Add each digit to the next and keep the last digits. Which number do they form?",
}
OPTIONS = {  # kinds that are also asked as multiple choice: every value in one option, no option rare
    "sum": ("ends in 0, 1 or 2", "ends in 3 or 4", "ends in 5, 6 or 7", "ends in 8 or 9"),
    "range": ("0 to 3", "4 or 5", "6 or 7", "8 or 9"),
    "alternate": ("less than -2", "-2 to 1", "2 to 5", "more than 5"),
}
ENDS = {"sum": (2, 4, 7, 9), "range": (3, 5, 7, 9), "alternate": (-3, 1, 5, 27)}  # the last value of each option


@dataclass(frozen=True)
class Record(records.Record):
    """One question. `cells` are indices into scikit-learn's digits, `digits` what they show; neither is written to a file."""

    trace: str = ""
    short: str = ""
    digits: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()

    def row(self) -> dict[str, object]:
        """The record as the project's data files hold it."""
        return {k: v for k, v in asdict(self).items() if k not in ("digits", "cells")}


@cache
def _source() -> tuple[list[list[list[float]]], list[int]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.tolist(), data.target.tolist()


@cache
def pools(seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Digit images (indices) of each split, disjoint, every class shared out alike."""
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    targets = _source()[1]
    for digit in range(10):
        members = [i for i, target in enumerate(targets) if target == digit]
        random.Random(f"pool {seed} {digit}").shuffle(members)
        start, share = 0, 0.0
        for split, part in SPLITS.items():
            share += part
            stop = round(share * len(members))
            found[split] += members[start:stop]
            start = stop
    return {split: tuple(sorted(indices)) for split, indices in found.items()}


def reason(kind: str, digits: tuple[int, ...]) -> tuple[list[str], str]:
    """Lines of reasoning (the digits read, then each partial result) and the answer."""
    lines, value = [" ".join(map(str, digits))], digits[0]
    if kind == "number":
        return lines, "".join(map(str, digits))
    if kind == "range":
        high, low = max(digits), min(digits)
        return [*lines, f"{high}-{low}={high - low}"], str(high - low)
    if kind == "pairs":
        lines += [f"{left}+{right}={left + right}" for left, right in pairwise(digits)]
        return lines, "".join(line[-1] for line in lines[1:])
    for place, digit in enumerate(digits[1:]):
        sign = "-" if kind == "alternate" and place % 2 == 0 else "+"
        result = value - digit if sign == "-" else value + digit
        lines.append(f"{value}{sign}{digit}={result}")
        value = result
    return lines, str(value)


def letter(kind: str, value: int) -> str:
    """The letter of the option that holds `value`."""
    shown = value % 10 if kind == "sum" else value
    return next(name for name, end in zip("ABCD", ENDS[kind], strict=True) if shown <= end)


def questions(
    split: str, count: int, seed: int = 0, choice_share: float = 0.5, kinds: tuple[str, ...] = tuple(KINDS)
) -> Iterator[Record]:
    """`count` records of one split; the same arguments give the same records on every machine."""
    rng, pool = random.Random(f"{split} {seed}"), pools()[split]
    seen: set[tuple[str, tuple[int, ...], bool]] = set()
    targets = _source()[1]
    while len(seen) < count:
        as_choice = rng.random() < choice_share
        kind = rng.choice(list(OPTIONS) if as_choice else kinds)
        cells = tuple(rng.sample(pool, rng.randint(1 if kind == "number" else 2, CELLS)))
        digits = tuple(targets[i] for i in cells)
        if (kind, digits, as_choice) in seen:
            continue
        seen.add((kind, digits, as_choice))
        lines, answer = reason(kind, digits)
        steps, choices = len(lines), None
        if as_choice:
            right = letter(kind, int(answer))
            choices = dict(zip("ABCD", OPTIONS[kind], strict=True))
            lines, answer = [*lines, f"{answer} is {right}"], right
        name = f"{split}-{seed}-{len(seen) - 1:05d}"
        short = f"\\boxed{{{answer}}}"
        trace = "<think>\n" + "\n".join(lines) + "\n</think>\n" + short
        yield Record(
            name,
            KINDS[kind],
            answer,
            (f"images/{name}.png",),
            choices,
            trace=trace,
            short=short,
            kind=kind,
            steps=steps,
            digits=digits,
            cells=cells,
        )


def picture(cells: tuple[int, ...]) -> Image:
    """The strip that shows these digits: 140x28 RGB, white on black, empty cells black."""
    from PIL import Image

    strip = Image.new("RGB", (CELL * CELLS, CELL))
    for place, index in enumerate(cells):
        pixels = bytes(round(value * 255 / 16) for line in _source()[0][index] for value in line)
        digit = Image.frombytes("L", (8, 8), pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
        strip.paste(digit, (place * CELL, 0))
    return strip


def save(rows: Iterator[Record], file: Path) -> None:
    """Write records as JSON lines to `file` and their pictures below its folder."""
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for record in rows:
            picture(record.cells).save(file.parent / record.images[0])
            out.write(json.dumps(record.row(), ensure_ascii=False) + "\n")


def write(folder: Path, train: int = 2000, val: int = 100, bench: int = 120, seed: int = 0) -> None:
    """Write train.jsonl, val.jsonl, bench_open.jsonl, bench_choice.jsonl and images/ into `folder`."""
    save(questions("train", train, seed), folder / "train.jsonl")
    save(questions("val", val, seed), folder / "val.jsonl")
    save(questions("bench_open", bench, seed, choice_share=0.0), folder / "bench_open.jsonl")
    save(questions("bench_choice", bench, seed, choice_share=1.0), folder / "bench_choice.jsonl")

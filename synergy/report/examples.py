"""Example responses, side by side: per level one question that the recipe's model won and one that it lost."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synergy.report.measure import LEVELS
from synergy.report.results import Model, chosen

RUN = 0
HEAD, TAIL = 700, 500
"""Characters kept of a long response: how it begins, and how it comes to its answer."""
IMAGE_BYTES = 60_000
"""A larger image is left out, so that the page stays small."""
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}

Place = tuple[str, str]
"""Benchmark and question id."""


@dataclass(frozen=True)
class Response:
    model: str
    text: str
    cut: int
    """Characters left out of the middle of the text."""
    correct: bool
    tokens: int


@dataclass(frozen=True)
class Example:
    """why: how it was chosen. image: a data URI or ''."""

    benchmark: str
    id: str
    level: int
    why: str
    question: str
    gold: str
    image: str
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Chosen:
    """A level's examples, and how run 0 of the last model compares with the first: questions won, lost, and in all."""

    level: int
    won: int
    lost: int
    n: int
    examples: tuple[Example, ...]


def choose(models: Sequence[Model]) -> list[Chosen]:
    """Per level: the first question that the last model got right and the first model wrong in run 0, and the first the other
    way round; if there is neither, the first question."""
    picks = {level: _pick(models, level) for level in LEVELS}
    wanted = {place for won, lost, every in picks.values() for place, _ in _told(won, lost, every)}
    texts = _questions(models[0].step.inputs["benchmarks"], wanted)
    responses = [_responses(model, wanted) for model in models]
    found = []
    for level, (won, lost, every) in picks.items():
        examples = tuple(
            Example(*place, level, why, *texts[place], tuple(by[place] for by in responses if place in by))
            for place, why in _told(won, lost, every)
        )
        if examples:
            found.append(Chosen(level, len(won), len(lost), len(every), examples))
    return found


def _pick(models: Sequence[Model], level: int) -> tuple[list[Place], list[Place], list[Place]]:
    """Questions of a level that the last model won, that it lost, and all, in the order of the benchmark."""
    first, last = (
        {(a.benchmark, a.id): a.correct for a in model.answers if a.run == RUN and a.level == level}
        for model in (models[0], models[-1])
    )
    won = [place for place in first if last[place] and not first[place]]
    lost = [place for place in first if first[place] and not last[place]]
    return won, lost, list(first)


def _told(won: Sequence[Place], lost: Sequence[Place], every: Sequence[Place]) -> list[tuple[Place, str]]:
    told = [(places[0], why) for places, why in ((won, "won"), (lost, "lost")) if places]
    return told or [(place, "the first question") for place in every[:1]]


def _responses(model: Model, wanted: Iterable[Place]) -> dict[Place, Response]:
    places, found = set(wanted), {}
    for row in chosen(model.file, lambda row: row["run"] == RUN and (row["benchmark"], str(row["id"])) in places):
        text, cut = shorten(row["response"])
        answer = Response(model.name, text, cut, bool(row["correct"]), int(row["tokens"]))
        found[row["benchmark"], str(row["id"])] = answer
    return found


def shorten(text: str) -> tuple[str, int]:
    """The text, or its beginning and end with a mark between, and how many characters were left out."""
    cut = len(text) - HEAD - TAIL
    if cut <= 80:
        return text, 0
    return f"{text[:HEAD]}\n[… {cut:,} characters left out …]\n{text[-TAIL:]}", cut


def _questions(folder: Path, wanted: Iterable[Place]) -> dict[Place, tuple[str, str, str]]:
    """Question with its choices, right answer, and image, from the benchmarks' tables."""
    places, found = set(wanted), {}
    csv.field_size_limit(sys.maxsize)  # images
    for bench in json.loads((folder / "benchmarks.json").read_text()):
        with (folder / bench["tsv"]).open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                place = (bench["name"], row.get("id") or row["index"])
                if place in places:
                    found[place] = (_question(row), row["answer"], data_uri(row.get("image") or ""))
    return found


def _question(row: Mapping[str, str]) -> str:
    choices = [f"{letter}. {row[letter]}" for letter in string.ascii_uppercase if row.get(letter)]
    return "\n".join([row["question"], *choices])


def data_uri(text: str) -> str:
    """A picture in base64, or the first of a JSON list of them, as a data URI; '' if it is none or too large."""
    if text.startswith("["):
        try:
            text = str(json.loads(text)[0])
        except (ValueError, IndexError):
            return ""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    kind = next((kind for mark, kind in _KINDS.items() if data.startswith(mark)), None)
    return f"data:image/{kind};base64,{text}" if kind and len(data) <= IMAGE_BYTES else ""

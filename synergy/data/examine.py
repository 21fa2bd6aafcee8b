"""What a process does with some rows of a source: images opened and kept, answers judged, tokens counted, problems listed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from reward_fns import gold
from reward_fns.answer import judge
from synergy.data import checks, readers, records, tokens
from synergy.data.checks import ImageGrid
from synergy.data.problems import Problem
from synergy.data.prompt import query
from synergy.data.readers import Draft, Source, files, pictures, shapes
from synergy.data.readers.pictures import Seen
from synergy.data.records import Record

MARKS = ("<image>", "<video>", "<audio>")
"""What LLaMA-Factory and verl take for media, wherever in the text it stands."""


@dataclass(frozen=True)
class Task:
    """How the rows of a source are looked at. model: whose tokenizer and image limits count; instruction: asked with each
    question; media: where images are kept, None: they are not; hashed: whether their perceptual hashes are taken."""

    source: Source
    model: Path
    instruction: str | None
    media: Path | None
    hashed: bool


@dataclass(frozen=True)
class Looked:
    """text: in ASCII, a JSON line for each row with its place, record, images, tokens and problems; heads: of each row; media:
    the files that images were read from, with size and time of change."""

    text: str
    heads: tuple[Head, ...]
    media: Mapping[str, tuple[int, int]]


class Head(NamedTuple):
    """What of a row is needed to know who has its id. id: None where there is no record. made: the id for a row without.
    problems: their checks, and whether they can be repaired."""

    id: str | None
    made: str
    problems: Sequence[tuple[str, bool]]


def work(task: Task, chunk: files.Chunk) -> Looked:
    """Looks at the rows of a chunk. Raises UserError for a file that is damaged as a whole."""
    found = [_Row(task, draft) for draft in readers.drafts(task.source, chunk)]
    _count(task, found)
    text = "".join(json.dumps(row.told()) + "\n" for row in found)
    heads = tuple(row.head(task.source.name) for row in found)
    return Looked(text, heads, {str(file): stamp(file) for row in found for file in row.files})


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change. Raises OSError."""
    told = file.stat()
    return told.st_size, told.st_mtime_ns


class _Row:
    def __init__(self, task: Task, draft: Draft) -> None:
        self.where, self.record = draft.where, draft.record
        self.problems = list(draft.problems)
        self.seen: list[Seen] = []
        self.files: set[Path] = set()
        self.tokens: dict[str, int] = {}
        if self.record is not None:
            self._images(task, draft)
            self.record = replace(self.record, images=tuple(seen.name for seen in self.seen))
            self.problems += of_record(self.record)

    def _images(self, task: Task, draft: Draft) -> None:
        cell, mended, small = _grid(task.model).cell, list[Seen](), list[str]()
        for number, wanted in enumerate(draft.images, start=1):
            try:
                data, file = pictures.data(wanted, draft.media)
                self.files |= {file} if file else set()
                seen = pictures.look(data, task.hashed)
            except (pictures.Unsafe, pictures.Unreadable) as error:
                check = "unsafe" if isinstance(error, pictures.Unsafe) else "image"
                self.problems.append(Problem(check, "images", f"image {number} {error}"))
                continue
            self.seen.append(seen)
            mended.append(seen)
            if min(seen.width, seen.height) < cell:
                data = pictures.enlarged(data, cell)
                mended[-1] = pictures.look(data, task.hashed)
                small.append(f"image {number} is {seen.width}x{seen.height}; each side needs {cell}")
            if task.media is not None:
                pictures.keep(data, mended[-1], task.media)  # one that is too small passes under no policy
        repair = {"images": [one.row() for one in mended]}
        self.problems += [Problem("small", "images", what, repair) for what in small]
        if len(self.seen) < len(draft.images):
            self.seen = []

    def head(self, source: str) -> Head:
        problems = tuple((problem.check, problem.repair is not None) for problem in self.problems)
        if self.record is None or self.record.id:
            return Head(self.record.id if self.record else None, "", problems)
        text = json.dumps([self.record.question, self.record.images, self.record.choices])
        return Head("", f"{source}:{hashlib.sha256(text.encode()).hexdigest()[:16]}", problems)

    def told(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "record": records.row(self.record) if self.record is not None else None,
            "images": [seen.row() for seen in self.seen],
            "tokens": self.tokens,
            "problems": [problem.row() for problem in self.problems],
        }


def of_record(record: Record) -> Iterator[Problem]:
    """What is wrong with a record, but for its id and images."""
    for name, text in _texts(record).items():
        if not _encodes(text):
            yield Problem("row", name, "holds half a surrogate pair, which UTF-8 can't write")
        elif mark := next((mark for mark in MARKS if mark in text), None):
            repair = {"choices": _without(record.choices)} if name == "choices" else {name: _clean(text)}
            yield Problem(
                "marks", name, f"holds {mark}, which the frameworks would take for one more of the media", repair
            )
    boxed = shapes.boxed(record.trace)
    choices = tuple((record.choices or {}).items())
    if problem := _gold(record.answer, choices, record.answer_type):
        mends = boxed and _gold(boxed, choices, record.answer_type) is None
        yield Problem("answer", "answer", problem, {"answer": boxed} if mends else None)
    elif record.trace and not (verdict := judge(record.trace, record.answer, record.choices)).correct:
        says = "has no final answer" if verdict.answer is None else f"ends with {verdict.answer[:60]!r}"
        yield Problem("trace", "trace", f"{says}, the gold answer is {record.answer[:60]!r}", {"trace": None})


@functools.lru_cache(maxsize=10_000)
def _gold(answer: str, choices: tuple[tuple[str, str], ...], kind: str | None) -> str | None:
    """``gold.problem``, remembered: most answers of a set are a few letters and numbers."""
    return gold.problem(answer, dict(choices) or None, kind)


def _texts(record: Record) -> dict[str, str]:
    found = {"id": record.id, "question": record.question, "answer": record.answer, "trace": record.trace or ""}
    return {**found, "choices": "\n".join((record.choices or {}).values()), "short": record.short or ""}


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clean(text: str) -> str:
    for mark in MARKS:
        text = text.replace(mark, " ")
    return text.strip()


def _without(choices: Mapping[str, str] | None) -> dict[str, str]:
    return {letter: _clean(text) for letter, text in (choices or {}).items()}


@functools.cache
def _grid(model: Path) -> ImageGrid:
    return checks.grid(model)


def _count(task: Task, rows: list[_Row]) -> None:
    """Tokens of each row's prompt, trace and images. A text that UTF-8 can't write has none."""
    there = [row for row in rows if row.record is not None and all(map(_encodes, _texts(row.record).values()))]
    found = [row.record for row in there if row.record is not None]
    asked = [query(record.question, record.choices, task.instruction) for record in found]
    told = [record.trace or "" for record in found]
    counts = tokens.counter(task.model)([*asked, *told])
    grid = _grid(task.model)
    for row, prompt, trace in zip(there, counts[: len(asked)], counts[len(asked) :], strict=True):
        visual = sum(grid.tokens(seen.width, seen.height) for seen in row.seen)
        row.tokens = {"prompt": prompt, "trace": trace, "images": visual}

"""A source, read once: its rows as ``examine`` leaves them and its images, kept by what they are made from.

A part is found again as long as its files, its settings, the instruction, and the model's tokenizer and image limits stay; so a
new source leaves the others alone. Files of rows count by content, images that rows name by size and time of change.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from synergy import machine
from synergy.data import examine, readers
from synergy.data.crew import Crew
from synergy.data.examine import Head, Task
from synergy.data.readers import Source
from synergy.driver import identity
from synergy.errors import UserError

VERSION = 4
"""Of what is kept: raised by whoever changes how rows are read or looked at."""
FOLDER, DIGESTS = "parts", "digests.json"
"""Below the folder of all preparations."""
ROWS, HEADS, FILES, DONE = "rows.jsonl", "heads.jsonl", "files.json", "part.json"
MODEL_FILES = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")

Tell = Callable[[str, int], None]
"""Called with a source's name and how many of its rows are done."""


@dataclass(frozen=True)
class Looks:
    """How sources are looked at (``examine.Task``), and below which folder parts are kept. images: whether images are kept."""

    home: Path
    model: Path
    instruction: str | None
    hashed: bool
    images: bool = True


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of a part: ``size`` bytes from the byte ``begin`` of its file on; first: the number of the first."""

    begin: int
    size: int
    first: int


@dataclass(frozen=True)
class Part:
    """key: sum of its rows, which name images by theirs. folder: with ROWS and images/. new: made by this call."""

    source: Source
    key: str
    folder: Path
    new: bool

    def heads(self) -> Iterator[Head]:
        for _, heads in self._chunks():
            yield from heads

    def spans(self, rows: int) -> Iterator[Span]:
        """All rows, in spans of at least so many, but for the last."""
        begin = size = first = count = 0
        for more, heads in self._chunks():
            size, count = size + more, count + len(heads)
            if count >= rows:
                yield Span(begin, size, first)
                begin, size, first, count = begin + size, 0, first + count, 0
        if count:
            yield Span(begin, size, first)

    def _chunks(self) -> Iterator[tuple[int, list[Head]]]:
        with (self.folder / HEADS).open("rb") as stream:
            for line in stream:
                size, heads = json.loads(line)
                yield size, [Head(*head) for head in heads]


def rows_of(folder: Path, span: Span | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a part's folder, or those of a span."""
    left = span.size if span else 1 << 62
    with (folder / ROWS).open("rb") as stream:
        stream.seek(span.begin if span else 0)
        while left > 0 and (line := stream.readline()):
            left -= len(line)
            yield json.loads(line)


def key(source: Source, model: Path, instruction: str | None, digests: Path | None) -> str:
    """What a part is made from, in hexadecimal digits."""
    told = {name: value for name, value in asdict(source).items() if name not in ("path", "media", "into")}
    suits = [file for file in (model / name for name in MODEL_FILES) if file.exists()]
    parts = {
        **told,
        "columns": dict(source.columns),
        "content": identity.digest(source.path, digests),
        "place": str(source.media or source.path),
        "model": [identity.digest(file, digests) for file in suits],
        "instruction": instruction,
        "version": VERSION,
    }
    return identity.sha(identity.canonical(parts))


def of_source(source: Source, looks: Looks, crew: Crew, tell: Tell) -> Part:
    """The part of a source below ``looks.home``, made unless it is there. Raises UserError for files that can't be read."""
    if not source.path.exists():
        raise UserError(f"data.sources {source.name}: path={source.path}: no such file or folder")
    parts, ending = looks.home / FOLDER, "" if looks.images else "-seen"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(key, source, looks.model, looks.instruction, looks.home / DIGESTS)
        if any(parts.glob(f"{source.name}-*{ending}")):  # else it is read while its content is being hashed
            folder = parts / f"{source.name}-{asked.result()[:12]}{ending}"
            if rows := fresh(folder):
                return Part(source, rows, folder, new=False)
        with machine.folder_aside(parts / f"{source.name}-reading", f"data.sources {source.name}") as aside:
            task = Task(source, looks.model, looks.instruction, aside if looks.images else None, looks.hashed)
            count, rows = _write(task, aside, crew, tell)
            name = asked.result()
            (aside / DONE).write_text(json.dumps({"key": name, "rows": count, ROWS: rows}) + "\n")
            folder = parts / f"{source.name}-{name[:12]}{ending}"
            shutil.rmtree(folder, ignore_errors=True)
        (parts / f"{source.name}-reading").rename(folder)
    return Part(source, rows, folder, new=True)


def fresh(folder: Path) -> str | None:
    """The sum of a part's rows, if it is there, and the media files that it was read from are as they were; else None."""
    try:
        stored = json.loads((folder / FILES).read_text(encoding="utf-8"))
        rows = str(json.loads((folder / DONE).read_text(encoding="utf-8"))[ROWS])
        same = all(list(examine.stamp(Path(name))) == mark for name, mark in stored.items())
        return rows if same and identity.sums(folder / ROWS)["."] == rows else None
    except (OSError, ValueError, KeyError):
        return None


def _write(task: Task, out: Path, crew: Crew, tell: Tell) -> tuple[int, str]:
    """Returns how many rows there are, and the sum of their file."""
    total, media, last, total_sum = 0, dict[str, tuple[int, int]](), 0.0, blake3()
    what = f"data.sources {task.source.name}"
    with (out / ROWS).open("wb") as stream, (out / HEADS).open("w") as heads:
        for looked in crew.map(partial(examine.work, task), readers.chunks(task.source), what):
            text = looked.text.encode("ascii")
            stream.write(text)
            total_sum.update(text)
            heads.write(json.dumps([len(text), looked.heads]) + "\n")
            total += len(looked.heads)
            media.update(looked.media)
            if time.monotonic() - last > 0.2:
                tell(task.source.name, total)
                last = time.monotonic()
    if not total:
        raise UserError(f"{what}: {task.source.path} holds no rows")
    tell(task.source.name, total)
    (out / FILES).write_text(json.dumps(media), encoding="utf-8")
    return total, total_sum.hexdigest()

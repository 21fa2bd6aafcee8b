"""Benchmarks with difficulty levels, from parquet to the table that VLMEvalKit reads, a few rows in memory at a time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_fns import gold
from synergy.data import layouts, levels, records
from synergy.data.layouts import LAYOUTS, Layout, has_picture, plain
from synergy.errors import UserError

BATCH = 16
"""Rows in memory. A question has up to seven images."""
_KEPT = {"1", "I", "I;16", "L", "LA", "P", "RGB", "RGBA"}
"""Pixel modes that VLMEvalKit can write as PNG."""


@dataclass(frozen=True)
class Source:
    """name: the benchmark's. folder: with parquet files. level, passrate, question: columns; passrate or question None: not
    looked for, or as published. counts: id -> passes of 16 runs in place of both columns, {}: of no question; None: as the
    columns say."""

    name: str
    folder: Path
    kind: str
    split: str | None = None
    level: str = ""
    passrate: str | None = None
    question: str | None = None
    counts: Mapping[str, int] | None = None

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.kind]

    @property
    def text(self) -> str:
        return self.question or self.layout.text

    def wrong(self, what: str) -> UserError:
        return UserError(f"benchmark {self.name}: {what}")


def write(source: Source, path: Path) -> dict[str, Any]:
    """The table of one benchmark at ``path``; returns questions per level, and what is odd about them.

    Raises UserError for missing files or columns, a level or pass rate that is none, an id used twice, and for an image that
    can't be read: each names the place.
    """
    files = _files(source)
    columns = _columns(source, files)
    tags = _tags(source, files) if source.counts is None else []
    ids: set[str] = set()
    seen: set[bytes] = set()
    odd: Counter[str] = Counter()
    with path.open("w", encoding="utf-8", newline="") as stream:
        fixed = ("index", "id", "image", "question", "answer", "difficulty_level", "passes")
        out = csv.DictWriter(stream, (*fixed, *source.layout.columns), delimiter="\t", lineterminator="\n")
        out.writeheader()
        for index, (where, row) in enumerate(_rows(source, files, columns)):
            cells = _cells(source, where, row, seen)
            if cells["id"] in ids:
                raise source.wrong(f"{where}: id {cells['id']!r} is used twice; ids are what results are compared by")
            ids.add(cells["id"])
            if source.counts is not None:
                tags.append(_given(source, cells["id"]))
            level, passes = tags[index]
            if problem := _unjudgeable(source.kind, cells):
                odd["unjudgeable"] += 1
                print(f"{source.name}: question {cells['id']} {problem}; no response to it will count as right")
            out.writerow({**cells, "index": index, "difficulty_level": level, "passes": passes})
    odd["levels_unlike_passes"] = sum(passes is not None and records.level(passes) != level for level, passes in tags)
    by_level = Counter(level for level, _ in tags)
    return {**{f"level_{n}": by_level[n] for n in range(1, 6)}, **{name: n for name, n in odd.items() if n}}


def _files(source: Source) -> list[Path]:
    """The parquet files of the split, by name (``test.parquet``, ``data/test-00000-of-00002.parquet``), or the only one."""
    split = source.split or source.layout.split
    there = sorted(file for file in source.folder.rglob("*.parquet") if file.is_file())
    found = [file for file in there if re.fullmatch(rf"{re.escape(split)}(-.*)?", file.stem)]
    if not found and len(there) == 1 and source.split is None:
        found = there
    if not found:
        names = ", ".join(str(file.relative_to(source.folder)) for file in there[:8]) or "no parquet file at all"
        raise source.wrong(
            f"{source.folder} has no file {split}.parquet or {split}-*.parquet; it has {names}; set split"
        )
    return found


def _columns(source: Source, files: Sequence[Path]) -> list[str]:
    """The columns to be read. Raises UserError that names the columns seen where one is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = source.layout
    first, *more = layout.images
    needed = {layout.id, source.text, "answer", first, *layout.needs}
    if source.counts is None:
        needed |= {source.level, *([source.passrate] if source.passrate else [])}
    for file in files:
        try:
            names = pq.read_schema(file).names
        except (OSError, ValueError, pa.ArrowException) as error:
            raise source.wrong(f"{file} can't be read as parquet ({error})") from error
        if missing := sorted(needed - set(names)):
            no_level = "; levels are read from the column that 'level' names, and no other" * (source.level in missing)
            raise source.wrong(f"{file} lacks {missing}; its columns are {names}{no_level}")
    return sorted(needed | {*more, *layout.may})


def _rows(source: Source, files: Sequence[Path], columns: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and row, row) of all files in order. Raises UserError where a file is damaged."""
    import pyarrow as pa

    for file in files:
        number = 0
        rows = _file_rows(file, columns)
        while True:
            where = f"{file.relative_to(source.folder)}, row {number}"
            try:
                row = next(rows, None)
            except (OSError, ValueError, MemoryError, OverflowError, pa.ArrowException) as error:
                raise source.wrong(f"{where}: the file is damaged ({str(error)[:200]}); get it again") from error
            if row is None:
                break
            yield where, row
            number += 1


def _file_rows(file: Path, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, pre_buffer=False) as table:
        there = set(table.schema_arrow.names)
        for batch in table.iter_batches(BATCH, columns=[name for name in columns if name in there], use_threads=False):
            yield from batch.to_pylist()


def _tags(source: Source, files: Sequence[Path]) -> list[tuple[int | None, int | None]]:
    """(level, passes or None) of every row. A pass rate is a share of the runs, or where any is above 1, a count of 16."""
    names = [source.level, *([source.passrate] if source.passrate else [])]
    found = list(_rows(source, files, names))
    if not found:
        raise source.wrong(f"{source.folder} has no rows")
    rates = [row.get(source.passrate) if source.passrate else None for _, row in found]
    try:
        numbers = [None if rate is None else float(rate) for rate in rates]
    except (TypeError, ValueError) as error:
        raise source.wrong(f"column {source.passrate} holds what is no pass rate: {error}") from error
    most = records.LEVEL_RUNS
    scale = 1 if any(number is not None and number > 1 for number in numbers) else most
    tags: list[tuple[int | None, int | None]] = []
    for (where, row), number in zip(found, numbers, strict=True):
        count = None if number is None else number * scale
        if count is not None and not (0 <= count <= most and abs(count - round(count)) < 0.05):
            raise source.wrong(f"{where}: {source.passrate} is {number}, neither a share nor a count of {most} runs")
        tags.append((_level(source, where, row[source.level]), None if count is None else round(count)))
    return tags


def _given(source: Source, name: str) -> tuple[int | None, int | None]:
    """(level, passes) of a question from the counts."""
    if not source.counts:
        return None, None
    levels.require(source.counts, [name], source.name)
    passes = source.counts[name]
    return records.level(passes), passes


def _level(source: Source, where: str, value: Any) -> int:
    """1 to 5 from 3, 3.0, '3', 'L3' or 'Level 3'."""
    match = re.fullmatch(r"(?:L|Level\s*)?([1-5])(?:\.0+)?", str(value).strip(), re.IGNORECASE)
    if match is None or isinstance(value, bool):
        raise source.wrong(f"{where}: {source.level} is {value!r}; a level is 1 to 5")
    return int(match[1])


def _cells(source: Source, where: str, row: Mapping[str, Any], seen: set[bytes]) -> dict[str, str]:
    """A row of the table, but for index, level and passes."""
    text, answer = plain(row[source.text]), plain(row["answer"])
    for name, value in (("answer", answer), (source.text, text)):
        if not value.strip():
            raise source.wrong(f"{where}: {name} is empty")
    try:
        cells = dict(source.layout.cells(row, text))
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # the last three: a cell of another type
        raise source.wrong(f"{where}: {error}") from error
    images = [
        _image(source, where, name, row[name], seen) for name in source.layout.images if has_picture(row.get(name))
    ]
    if not images:
        raise source.wrong(f"{where}: has no image in {', '.join(source.layout.images)}")
    common = {"id": plain(row[source.layout.id]), "question": text, "answer": answer}
    return {**common, **cells, "image": images[0] if len(images) == 1 else json.dumps(images)}


def _image(source: Source, where: str, column: str, value: Any, seen: set[bytes]) -> str:
    """The picture in base64, checked by decoding it once; its bytes as they are unless VLMEvalKit could not write them."""
    from PIL import Image

    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise source.wrong(f"{where}: column {column} holds no picture but {str(value)[:60]!r}; embed the pictures")
    mark = hashlib.sha256(data).digest()
    if mark not in seen:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                if picture.mode not in _KEPT:
                    buffer = io.BytesIO()
                    picture.convert("RGB").save(buffer, "PNG")
                    return base64.b64encode(buffer.getvalue()).decode()
        except Exception as error:  # whatever a damaged picture makes the decoder raise
            raise source.wrong(f"{where}: the picture in {column} can't be opened ({error})") from error
        seen.add(mark)
    return base64.b64encode(data).decode()


def _unjudgeable(kind: str, cells: Mapping[str, str]) -> str | None:
    """What is wrong with the gold answer, or None."""
    if kind in ("mathvision", "mathvista", "mathverse"):
        choices = layouts.lettered(layouts.listed(cells["choices"]))
    else:
        choices = {letter: cells[letter] for letter in layouts.LETTERS if cells.get(letter)}
    answers = [cells["answer"]]
    if kind == "mmmu" and not choices and cells["answer"].startswith("["):
        answers = layouts.listed(cells["answer"])
    return next((problem for answer in answers if (problem := gold.problem(answer, choices or None))), None)

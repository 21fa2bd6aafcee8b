"""Rows of parquet, JSONL, JSON, CSV and TSV files, and of whatever else ``datasets`` can load from a folder.

A chunk is what one process takes at a time: a row group of a parquet file, which it reads itself, or up to ``BATCH`` rows.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.errors import UserError

BATCH = 64
MOST_ROW = 128 << 20
"""Bytes of a row: a table with several images in base64 stays far below; more is no data set's row."""
KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
PLAIN = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json")
"""JSON files that are no rows."""


@dataclass(frozen=True)
class Chunk:
    """file: as messages name it. group: a parquet row group, whose rows are counted from ``first``; None: the rows are here,
    each with its place, as text (a line of JSON) or as a mapping."""

    file: str
    path: Path
    first: int = 0
    group: int | None = None
    listed: tuple[tuple[str, Any], ...] = ()


def find(path: Path, split: str, subset: str | None) -> list[Path]:
    """The files of a split, in order. Raises UserError that names what is there."""
    if path.is_file():
        if path.suffix not in KINDS:
            raise UserError(
                f"{path}: rows are read from {', '.join(KINDS)} files, not from {path.suffix or 'such a file'}"
            )
        return [path]
    folder = path / subset if subset else path
    there = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in KINDS and file.is_file() and file.name not in PLAIN and not file.name.startswith(".")
    )
    named = re.compile(rf"{re.escape(split)}([-_.].*)?")
    found = [file for file in there if named.fullmatch(file.stem)]
    found = found or [file for file in there if split in file.relative_to(folder).parts[:-1]]
    found = found or (there if len(there) == 1 else [])
    if not found and not (folder / "state.json").exists() and there:
        names = ", ".join(str(file.relative_to(folder)) for file in there[:8])
        raise UserError(f"{folder}: no file of the split {split!r}; it has {names}: set split, subset or path")
    if len({file.suffix for file in found}) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise UserError(f"{folder}: the split {split!r} is there in several formats ({names}): set path to one of them")
    return found


def chunks(path: Path, split: str = "train", subset: str | None = None) -> Iterator[Chunk]:
    """All rows of a file or folder, in order. Raises UserError for what is missing, and for a file that is damaged as a whole;
    a damaged row is told by ``rows``."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    found = find(path, split, subset)
    for file in found:
        name = file.name if file == path else str(file.relative_to(path))
        if file.suffix == ".parquet":
            yield from _groups(file, name)
        else:
            yield from _listed(file, name, _READ[file.suffix](file, name))
    if not found:
        yield from _listed(path / "rows", path.name, _by_datasets(path, split, subset))


def rows(chunk: Chunk) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """(place, row) of a chunk; in place of a row that can't be read, what is wrong with it."""
    if chunk.group is not None:
        yield from _of_group(chunk)
        return
    for where, row in chunk.listed:
        if isinstance(row, bytes):
            row = _parsed(row)
        yield where, row if isinstance(row, (str, Mapping)) else f"is {type(row).__name__}, not a JSON object"


def _parsed(text: bytes) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"is not JSON in UTF-8 ({error})"
    return f"is text, not a JSON object: {value[:60]!r}" if isinstance(value, str) else value


def _listed(path: Path, name: str, found: Iterable[tuple[str, Any]]) -> Iterator[Chunk]:
    batch: list[tuple[str, Any]] = []
    for one in found:
        batch.append(one)
        if len(batch) == BATCH:
            yield Chunk(name, path, listed=tuple(batch))
            batch = []
    if batch:
        yield Chunk(name, path, listed=tuple(batch))


def _groups(path: Path, name: str) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        told = pq.read_metadata(path)
        first = 0
        for group in range(told.num_row_groups):
            yield Chunk(name, path, first, group)
            first += told.row_group(group).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: can't be read as parquet ({error}); fetch it again") from error


def _of_group(chunk: Chunk) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = chunk.first
    try:
        with pq.ParquetFile(chunk.path, pre_buffer=False, buffer_size=1 << 20) as table:
            for batch in table.iter_batches(BATCH, row_groups=[chunk.group], use_threads=False):
                for row in batch.to_pylist():
                    yield f"{chunk.file}, row {number}", row
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{chunk.path}: damaged from row {number} on ({error}); fetch it again") from error


def _lines(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MOST_ROW + 1):
            number += 1
            if len(line) > MOST_ROW:
                raise UserError(
                    f"{path}:{number}: a line of more than {MOST_ROW >> 20} MiB; this is no JSON lines file"
                )
            if line.strip():
                yield f"{name}:{number}", line


def _array(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """The items of a JSON array, one in memory at a time. Raises UserError for anything else, with the row."""
    decoder, number, at = json.JSONDecoder(), 0, 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(1 << 20).lstrip()
            if not text.startswith("["):
                raise UserError(f"{path}: not a JSON array of rows; JSON lines are read from .jsonl")
            at = 1
            while True:
                while (mark := re.compile(r"[\s,]*").match(text, at)) and mark.end() == len(text):
                    if not (more := stream.read(1 << 20)):
                        raise UserError(f"{path}, row {number}: the file ends here without its closing bracket")
                    text, at = more, 0
                at = mark.end() if mark else at
                if text[at] == "]":
                    return
                try:
                    value, end = decoder.raw_decode(text, at)
                except (ValueError, RecursionError) as error:
                    more = stream.read(max(1 << 20, len(text) - at)) if len(text) - at <= MOST_ROW else ""
                    if isinstance(error, RecursionError) or not more:
                        raise UserError(f"{path}, row {number}: not JSON, or no row's size ({error})") from error
                    text, at = text[at:] + more, 0
                    continue
                yield f"{name}, row {number}", f"is text: {value[:60]!r}" if isinstance(value, str) else value
                number, at = number + 1, end
                if at > 1 << 22:
                    text, at = text[at:], 0
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, near row {number}: not UTF-8 ({error})") from error


def _table(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Rows of CSV or TSV by their header. A place is the line that a row ends on."""
    csv.field_size_limit(min(sys.maxsize, MOST_ROW))
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header = reader.fieldnames or []
            if len(set(header)) < len(header):
                raise UserError(f"{path}: its header names a column twice: {header}")
            for row in reader:
                where = f"{name}:{reader.line_num}"
                count = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, ()))
                if None in row or count < len(header):
                    yield where, f"has {count} fields, the header {len(header)}"
                else:
                    yield where, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from error
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a table ({error})") from error


_READ = {".jsonl": _lines, ".json": _array, ".csv": _table, ".tsv": _table}


def _by_datasets(path: Path, split: str, subset: str | None) -> Iterator[tuple[str, Any]]:
    """Rows of a folder that only ``datasets`` reads: saved by it, or images in folders. Images stay as their bytes."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path}: this folder needs the package datasets: run `make setup`") from error
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(str(path), name=subset, split=split)
        for name, feature in loaded.features.items():
            if isinstance(feature, datasets.Image):
                loaded = loaded.cast_column(name, datasets.Image(decode=False))
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                loaded = loaded.cast_column(name, datasets.List(datasets.Image(decode=False)))
    except Exception as error:  # its builders raise many kinds; each means: not to be read
        raise UserError(f"{path}: datasets can't load the split {split!r} ({str(error).splitlines()[0]})") from error
    for number, row in enumerate(loaded):
        yield f"{path.name}, row {number}", row

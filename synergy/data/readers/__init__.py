"""Readers: any published data set, row by row, as drafts of records.

``files`` reads rows from a file or folder in chunks that other processes can take; ``shapes`` knows the layouts that rows come
in; ``pictures`` gets at the images. Nothing here holds a whole data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synergy.data.problems import Problem
from synergy.data.readers import files, shapes
from synergy.data.records import Record


@dataclass(frozen=True)
class Source:
    """What ``config.Source`` says, resolved. path: a file or folder; media: folder or zip of the images that rows name, None:
    the folder of the rows' file."""

    name: str
    path: Path
    layout: str = "columns"
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    subset: str | None = None
    media: Path | None = None
    into: str = "train"


@dataclass(frozen=True)
class Draft:
    """A row as its layout reads it. where: file and row; record: without images; None: unreadable, and ``problems`` say why.
    images: cells as ``pictures.data`` takes them; media: where those that are names lie."""

    where: str
    record: Record | None
    images: tuple[object, ...]
    media: Path
    problems: tuple[Problem, ...]


def chunks(source: Source) -> Iterator[files.Chunk]:
    """All rows of a source in order. Raises UserError for files that are missing or damaged as a whole."""
    return files.chunks(source.path, source.split, source.subset)


def drafts(source: Source, chunk: files.Chunk) -> Iterator[Draft]:
    """The rows of a chunk."""
    shape = shapes.SHAPES[source.layout]
    media = source.media or chunk.path.parent
    for where, row in files.rows(chunk):
        if isinstance(row, Mapping):
            shaped = shapes.read(shape, row, source.columns)
            yield Draft(where, shaped.record(source.name), tuple(shaped.images), media, tuple(shaped.problems))
        else:
            yield Draft(where, None, (), media, (Problem("row", "", row),))

"""Rows of data come from elsewhere: what in them no file can hold, and paths by which they would read or write elsewhere."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synergy.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:[/\\]|data:", re.IGNORECASE)
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, at which tables are cut, and halves of UTF-16 pairs, which UTF-8 has no bytes for."""


def check(row: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a record's field that is of another type, can't be written, or names a place outside its folder."""
    if not isinstance(row["question"], str) or isinstance(row["id"], bool) or not isinstance(row["id"], (str, int)):
        raise UserError(f"{where}: 'question' is text, and 'id' text or a whole number")
    if row.get("steps") is not None and type(row["steps"]) is not int:
        raise UserError(f"{where}: 'steps' is a whole number, not {str(row['steps'])[:80]!r}")
    if wrong := [letter for letter in row.get("choices") or () if not re.fullmatch("[A-Z]", str(letter))]:
        raise UserError(f"{where}: 'choices' has {wrong[0]!r} for a letter; call them A, B, C, ...")
    for text in _texts(row):
        if found := _UNWRITABLE.search(text):
            raise UserError(f"{where}: it holds the character {found[0]!r}, which is no text; take it out")
    for name in row.get("images") or ():
        if problem := astray(name):
            raise UserError(
                f"{where}: image {name[:200]!r} {problem}; put the picture into the records' folder and name it from there"
            )


def astray(name: str) -> str | None:
    """Why a path in a record is none below the records' folder, whatever lies there; None if it is one."""
    if _ADDRESS.match(name):
        return "is an address, not a path"
    if name.startswith(("/", "\\")):
        return "is an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "leaves the folder"
    if not name.strip("./ "):
        return "names no file"
    return None


def inside(media: Path, name: str) -> Path:
    """The file that a record names below ``media``. Raises ValueError for one that lies elsewhere, through a link too. In the
    hub's cache the files of a snapshot are links to ``blobs`` beside it."""
    problem = astray(name)
    if problem is None:
        root, file = Path(real(media)), Path(os.path.realpath(media / name))
        snapshots = next((folder for folder in (root, *root.parents) if folder.name == "snapshots"), None)
        allowed = [root] if snapshots is None else [root, snapshots.parent / "blobs"]
        if any(file.is_relative_to(folder) for folder in allowed):
            return media / name
        problem = f"is a link to {file}, outside of {media}"
    raise ValueError(problem)


@functools.cache
def real(folder: Path) -> str:
    """The folder behind links, looked up once."""
    return os.path.realpath(folder)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (str(key), *_texts(inner))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)

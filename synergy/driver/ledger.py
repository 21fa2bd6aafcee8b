"""The ledger: one JSON line per published stage. What is not in the ledger does not exist.

A line is appended only after the stage's output was renamed into place; a torn line (a crash while writing) is ignored, and
costs no other, even where another writer's line came to stand in its remains.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """A published stage: its key, where it lies, what it was made from (digests) and what it cost."""

    key: str
    kind: str
    name: str
    output: str
    digest: str
    fingerprint: str
    identity: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    peak_memory: int = 0
    attempt: int = 1
    schema: int = SCHEMA


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _row(line)
        if row is not None and row.get("schema") == SCHEMA:
            yield row


def _row(line: str) -> dict[str, Any] | None:
    """The object that a line ends with, whatever torn text stands before it."""
    at = line.find("{")
    while at >= 0:
        try:
            row = json.loads(line[at:])
            return row if isinstance(row, dict) else None
        except (ValueError, RecursionError):
            at = line.find('{"', at + 1)
    return None


def read(path: Path) -> dict[str, Entry]:
    """Key -> its newest entry. A line with a field of another type is none of ours."""
    entries = [found for found in map(entry, _lines(path)) if found is not None]
    return {found.key: found for found in entries}


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "dict": dict}


def entry(row: Mapping[str, Any]) -> Entry | None:
    """The entry that a line holds. None unless all that is needed is there, of its type, and the output lies below the run
    directory."""
    try:
        found = Entry(**{item.name: row[item.name] for item in fields(Entry) if item.name in row})
    except TypeError:
        return None
    for item in fields(Entry):
        kind = _TYPES[str(item.type).partition("[")[0]]
        if not isinstance(getattr(found, item.name), kind) or isinstance(getattr(found, item.name), bool):
            return None
    numbers = (found.started, found.seconds)
    below = re.fullmatch(r"stages/[\w-]+/output", found.output)
    return found if below and all(abs(number) < 1e11 for number in numbers) else None


def append(path: Path, entry: Entry) -> None:
    """Adds one line and waits until it is on disk; starts on a fresh line if the last one is torn."""
    line = (json.dumps(asdict(entry), sort_keys=True) + "\n").encode()
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        left = b"\n" * torn + line
        while left:  # a disk that fills up takes a part without a word, and raises only at the next
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)

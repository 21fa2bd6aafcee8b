"""What a killed driver leaves running, ended by the next one: exactly what it wrote down, never what merely has such a name.

``.processes.jsonl`` in the run directory has the mark of every stage before its first process starts, and every process as it
is seen, with its birth, so that another process of the same number is let alone. A process is a run directory's if it bears
one of those marks in its environment, is written down, or descends from such a one. Marks alone would not do: Ray's workers
write their title over their environment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from synergy import machine
from synergy.driver import process

FILE = ".processes.jsonl"


@dataclass(frozen=True)
class Register:
    """Writes down a run directory's processes."""

    root: Path
    known: set[str] = field(default_factory=set)

    def mark(self, mark: str) -> None:
        self._write([{"mark": mark}])

    def seen(self, found: Collection[psutil.Process]) -> None:
        births = {one.pid: machine.born(one.pid) for one in found}
        self._write([{"pid": pid, "born": birth} for pid, birth in births.items() if birth is not None])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        lines = [line for row in rows if (line := json.dumps(row) + "\n") not in self.known]
        if lines:
            with (self.root / FILE).open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
            self.known.update(lines)

    def close(self) -> None:
        """All of them have ended."""
        (self.root / FILE).unlink(missing_ok=True)


def sweep(root: Path, grace: float = process.GRACE_SECONDS, spare: str | None = None) -> int:
    """Ends what a killed driver left of this run directory on this host; returns how many processes there were. spare: mark of
    processes that this driver has started itself, for an earlier job of its sweep."""
    rows = list(_rows(root / FILE))
    marks = [str(row["mark"]) for row in rows if row.get("mark", spare) != spare]
    mine = process.family(spare) if spare else []
    left = [found for row in rows if "pid" in row and (found := _same(row)) is not None]
    ours = [found for found in left if found not in mine]
    count = process.end([*ours, *process.marked(*marks)], marks, grace)
    (root / FILE).unlink(missing_ok=True)
    return count


def _same(row: dict[str, Any]) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error, ValueError, TypeError):
        found = psutil.Process(row["pid"])
        if machine.born(found.pid) == row.get("born") and process.runs(found):
            return found
    return None


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # torn by the kill
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row

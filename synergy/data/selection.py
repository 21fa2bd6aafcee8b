"""A selection at work: the steps of ``select.py`` one after the other, with a report of what each kept and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from synergy.data import select
from synergy.data.records import Record
from synergy.data.rows import Row
from synergy.data.rows import of_records as as_rows
from synergy.data.select import Dropped, Step
from synergy.errors import UserError

REPORT, DROPPED = "selection.json", "dropped.jsonl"


def of_records(found: Sequence[Record], given: Any, out: Path) -> list[Record]:
    """The training records that the steps of data.select keep, in their order."""
    by_id = {record.id: record for record in found}
    kept = apply(select.parse(given, "data.select"), as_rows(found), out)
    return [by_id[row.id] for row in kept]


def apply(steps: Sequence[Step], rows: Sequence[Row], out: Path, refused: Dropped | None = None) -> list[Row]:
    """The rows that all steps keep. Writes into ``out`` REPORT (rows and questions before and after each step, with the
    commonest reasons) and DROPPED (the reason for each row that went). refused: rows that were unusable before any step.

    Raises UserError where a step can't be taken or leaves nothing.
    """
    refused, kept = refused or [], list(rows)
    told = []
    with (out / DROPPED).open("w", encoding="utf-8") as file:
        if refused:
            told.append(
                _told({"usable": "text that can be trained on"}, [*rows, *(r for r, _ in refused)], rows, refused)
            )
            _write(file, 0, refused)
        for number, step in enumerate(steps, start=1):
            given = asdict(step)
            where = f"select step {number}, {json.dumps(given)}"
            try:
                after, dropped = step(kept)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            if not after:
                raise UserError(f"{where}, leaves nothing of {len(kept)} rows")
            told.append(_told(given, kept, after, dropped))
            _write(file, number, dropped)
            kept = after
    (out / REPORT).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return kept


def _told(step: Mapping[str, Any], before: Sequence[Row], after: Sequence[Row], dropped: Dropped) -> dict[str, Any]:
    counts = {"rows": [len(before), len(after)], "questions": [len({r.id for r in rows}) for rows in (before, after)]}
    return {"step": dict(step), **counts, "dropped": dict(Counter(why for _, why in dropped).most_common(20))}


def _write(file: IO[str], number: int, dropped: Dropped) -> None:
    for row, why in dropped:
        line = {"id": row.id, "from": row.origin, "index": row.index, "step": number, "why": why}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")

"""Difficulty levels: the records of a set with passes and level, from the pass counts of 16 runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synergy.data import records
from synergy.driver import handoff


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes tagged.jsonl and the images it names, from the data's training records and ``passes`` (passes.jsonl of a sample
    stage). Raises ValueError for a question that was not run 16 times."""
    source = Path(spec["data"]) / "records"
    counts = {row["id"]: row for _, row in records.lines(Path(spec["passes"][0]))}
    found = []
    for record in records.read(source / "train.jsonl"):
        passes, runs = counts[record.id]["passes"], counts[record.id]["n"]
        found.append(replace(record, passes=passes, level=records.level(passes, runs)))
    for name in {name for record in found for name in record.images}:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        handoff.link(source / name, out / name)
    records.write(out / "tagged.jsonl", found)
    (out / "levels.json").write_text(json.dumps({record.id: record.passes for record in found}, indent=0) + "\n")
    told = records.by_level(found)
    print(f"{len(found)} questions, by level {list(told.values())}")
    return told

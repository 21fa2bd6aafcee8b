"""Difficulty levels from the pass counts of 16 runs: of a set of records, and of benchmarks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synergy.data import records
from synergy.data.records import LEVEL_RUNS
from synergy.driver import handoff
from synergy.errors import UserError


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


def of_benchmarks(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes NAME.json, id -> passes, for each benchmark of an evaluation (``answers``: its results.jsonl). Raises ValueError
    for a question that was not answered in 16 runs."""
    passes: dict[str, Counter[str]] = {}
    runs: Counter[tuple[str, str]] = Counter()
    for _, row in records.lines(Path(spec["answers"])):
        name, question = row["benchmark"], str(row["id"])
        passes.setdefault(name, Counter())[question] += bool(row["correct"])
        runs[name, question] += 1
    told: dict[str, Any] = {}
    for name, counts in passes.items():
        found = [records.level(count, runs[name, question]) for question, count in counts.items()]
        (out / f"{name}.json").write_text(json.dumps(counts, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        told[name] = {f"level_{n}": found.count(n) for n in range(1, 6)}
        print(f"{name}: {len(found)} questions, by level {list(told[name].values())}")
    return told


def read(file: Path) -> dict[str, int]:
    """Passes by id, as ``of_benchmarks`` writes them. Raises UserError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: can't be read as JSON ({error})") from error
    good = isinstance(found, dict) and all(type(n) is int and 0 <= n <= LEVEL_RUNS for n in found.values())
    if not good or not found:
        raise UserError(
            f"{file}: not a file of levels, which says for each id how many of {LEVEL_RUNS} runs were right"
        )
    return dict(found)


def require(counts: Mapping[str, int], names: Iterable[str], benchmark: str) -> None:
    """Raises UserError for a question without passes."""
    missing = [name for name in names if name not in counts]
    if missing:
        raise UserError(
            f"benchmark {benchmark}: its file of levels has no passes of {len(missing)} questions (first: {missing[0]!r}); "
            "tag the benchmark as it is now, or set its levels to null"
        )

"""Parts to one folder for all frameworks: every row meets the policies, then the rows that are left are written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from synergy.data import overlap, records, writers
from synergy.data.checks import TEMPLATE_TOKENS
from synergy.data.overlap import Index
from synergy.data.part import Part
from synergy.data.problems import Problem
from synergy.data.records import Record
from synergy.data.writers import Turn
from synergy.driver import handoff

SPLITS = {"train": "train.jsonl", "validation": "val.jsonl"}
EXAMPLES = 5


@dataclass(frozen=True)
class Rules:
    """policies: of every check. cutoff_len, max_prompt: tokens; None: without limit."""

    policies: Mapping[str, str]
    instruction: str
    cutoff_len: int | None
    max_prompt: int | None


@dataclass
class Told:
    """What was found. rows, kept, mended: per source. found: per (check, outcome: fails, dropped or repaired). examples: of
    each (source, place, column, text). lengths: field -> tokens of each row that is kept."""

    rows: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[tuple[str, str, str, str]]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"prompt": [], "trace": [], "images": []})
    files: dict[str, int] = field(default_factory=dict)

    @property
    def fails(self) -> dict[str, int]:
        return {check: count for (check, outcome), count in self.found.items() if outcome == "fails"}


def sift(parts: Sequence[Part], index: Index | None, rules: Rules, out: Path) -> Told:
    """Writes records/*.jsonl with the rows that the policies let through and records/images/, and problems.jsonl with all that
    was found. Rows are read one by one, and of those that are left only id and lengths are held."""
    told, ids, folders = Told(), set[str](), set[str]()
    place = out / "records"
    place.mkdir(parents=True)
    with ExitStack() as stack:
        listed = stack.enter_context((out / "problems.jsonl").open("w", encoding="utf-8"))
        files: dict[str, TextIO] = {}
        for part in parts:
            into = part.source.into
            name = SPLITS.get(into, f"{part.source.name}.jsonl")
            if name not in files:
                files[name] = stack.enter_context((place / name).open("w", encoding="utf-8"))
            for row, shared in _with_overlap(part, index if into == "train" else None):
                told.rows[part.source.name] += 1
                record = _decide(part, row, shared, rules, ids, told, listed)
                if record is None:
                    continue
                ids.add(record.id)
                told.kept[part.source.name] += 1
                files[name].write(json.dumps(records.row(record), ensure_ascii=False) + "\n")
                for image in record.images:
                    if image[:9] not in folders:  # images/ab
                        folders.add(image[:9])
                        (place / image[:9]).mkdir(parents=True, exist_ok=True)
                    _link(part.folder / image, place / image)
                for what, count in row["tokens"].items():
                    told.lengths[what].append(count if what != "trace" or record.trace else 0)
    for name in files:
        if not (place / name).stat().st_size:
            (place / name).unlink()
    return told


def _with_overlap(part: Part, index: Index | None) -> Iterator[tuple[dict[str, Any], Problem | None]]:
    rows = part.rows()
    while batch := list(islice(rows, overlap.AT_ONCE)):
        there = [row for row in batch if row["record"] is not None]
        shared = iter(index.check(there)) if index is not None else None
        for row in batch:
            yield row, next(shared) if shared is not None and row["record"] is not None else None


def _link(source: Path, target: Path) -> None:
    """Content is the name, so what is there already is the same."""
    if not target.exists():
        handoff.link(source, target)


def _decide(
    part: Part,
    row: Mapping[str, Any],
    shared: Problem | None,
    rules: Rules,
    ids: set[str],
    told: Told,
    listed: TextIO,
) -> Record | None:
    """The record as it will be written, or None. Every problem is told, with what came of it."""
    changes: dict[str, Any] = {}
    left = row["record"] is not None
    problems = [Problem(*found) for found in row["problems"]]
    problems += [shared] if shared is not None else []
    if left and part.source.into in SPLITS:
        problems += _lengths(row, rules)
    problems += _id(row["record"], part.source.name, ids) if left else []
    for problem in problems:
        policy = rules.policies[problem.check]
        outcome = {"fail": "fails", "drop": "dropped", "repair": "repaired"}[policy]
        if policy == "repair":
            if problem.repair is None:
                outcome = "dropped"
            else:
                changes |= problem.repair
        left = left and outcome == "repaired"
        told.found[problem.check, outcome] += 1
        some = told.examples.setdefault((problem.check, outcome), [])
        if len(some) < EXAMPLES:
            some.append((part.source.name, row["where"], problem.column, problem.what))
        line = {"check": problem.check, "outcome": outcome, "source": part.source.name, "row": row["where"]}
        listed.write(json.dumps({**line, "column": problem.column, "what": problem.what}) + "\n")
    if not left:
        return None
    changes |= {"images": [image[0] for image in changes["images"]]} if "images" in changes else {}
    return records.parse({**row["record"], **changes}, row["where"])


def _lengths(row: Mapping[str, Any], rules: Rules) -> Iterator[Problem]:
    tokens = row["tokens"]
    asked = tokens.get("prompt", 0) + tokens.get("images", 0) + TEMPLATE_TOKENS
    total = asked + tokens.get("trace", 0)
    if rules.max_prompt and asked > rules.max_prompt:
        yield Problem("prompt", "question", f"its prompt makes {asked} tokens, over {rules.max_prompt}")
    if rules.cutoff_len and row["record"]["trace"] and total > rules.cutoff_len:
        what = f"prompt and trace make {total} tokens, over {rules.cutoff_len}"
        yield Problem("response", "trace", what, {"trace": None})


def _id(record: Mapping[str, Any], source: str, ids: set[str]) -> list[Problem]:
    name = record["id"]
    if not name:
        text = json.dumps([record["question"], record["images"], record["choices"]])
        made = f"{source}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return [Problem("id", "id", "has no id", {"id": _free(made, ids)})]
    if name in ids:
        return [Problem("id", "id", f"its id {name!r} is used before", {"id": _free(f"{source}:{name}", ids)})]
    return []


def _free(name: str, ids: set[str]) -> str:
    found, number = name, 2
    while found in ids:
        found, number = f"{name}#{number}", number + 1
    return found


def write(rules: Rules, out: Path, told: Told) -> None:
    """llamafactory/, verl/ and vlmevalkit/ from records/, row by row."""
    place = out / "records"
    kept = {split: place / name for split, name in SPLITS.items() if (place / name).exists()}
    told.files |= writers.llamafactory(
        out / "llamafactory", {split: _traces(file, rules.instruction) for split, file in kept.items()}, lossless=True
    )
    for split, file in kept.items():
        turns = (Turn(record) for record in records.stream(file))
        path = out / "verl" / f"{split}.parquet"
        told.files[f"verl/{split}"] = writers.verl(path, turns, place, rules.instruction, split=split, lossless=True)
    for file in sorted(set(place.glob("*.jsonl")) - set(kept.values())):
        writers.vlmevalkit(out / "vlmevalkit" / f"{file.stem}.tsv", records.read(file), place, lossless=True)


def _traces(file: Path, instruction: str) -> Iterator[tuple[Record, str, str | None]]:
    return ((record, record.trace, instruction) for record in records.stream(file) if record.trace)

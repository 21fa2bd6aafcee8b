"""Data mixing: a model's own right responses, and long traces for the questions it never solves, as one SFT set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from synergy.data import checks, records, writers
from synergy.data.records import Record
from synergy.errors import UserError


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes sft/ from ``responses`` (responses.jsonl of a sample stage), question by question in the order of the records.

    Every response with a right answer is kept, whatever its format. Raises UserError for a zero-pass question without a trace,
    and for a row longer than ``cutoff_len``.
    """
    data = Path(spec["data"]) / "records"
    right: dict[str, list[str]] = {}
    total = 0
    for _, row in records.lines(Path(spec["responses"])):
        total += 1
        kept = right.setdefault(str(row["id"]), [])
        if row["acc"] > 0.5:
            kept.append(row["response"])
    rows: list[tuple[Record, str, str | None]] = []
    zero = 0
    for record in records.read(data / "train.jsonl"):
        if record.id not in right:
            continue
        zero += not right[record.id]
        if not right[record.id] and not record.trace:
            raise UserError(
                f"record {record.id!r} needs a trace, since none of its responses was right, and has none: add 'trace' to its "
                "line in data.train, or leave the question out"
            )
        rows += [(record, text, spec["instruction"]) for text in right[record.id] or [str(record.trace)]]
    visual = json.loads((data / "train_visual_tokens.json").read_text())
    tokens = checks.lengths(rows, visual, checks.tokenizer(Path(spec["base"])), spec["cutoff_len"])
    writers.llamafactory(out / "sft", {"train": rows})
    print(f"{len(rows) - zero} of {total} responses are right, {zero} zero-pass questions with their trace")
    tokens_mean = mean(tokens) if tokens else 0
    return {"responses": total, "kept": len(rows) - zero, "zero_pass": zero, "tokens_mean": tokens_mean}

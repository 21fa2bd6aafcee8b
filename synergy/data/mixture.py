"""Data mixing: a model's own right responses, and long traces for the questions it never solves, as one SFT set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from synergy.data import checks, records, rows, select, selection, writers
from synergy.data.rows import TRACES


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes sft/ from ``responses`` (responses.jsonl of a sample stage), question by question in the order of the records,
    and what ``select`` kept and why. Text that a chat template would misread is left out.

    Raises UserError for a zero-pass question without a trace, and for a row longer than ``cutoff_len``.
    """
    data, file = Path(spec["data"]) / "records", Path(spec["responses"])
    found = {record.id: record for record in records.read(data / "train.jsonl")}
    words = checks.tokenizer(Path(spec["base"]))
    special = rows.special_tokens(words)
    usable, refused = rows.of_responses(list(found.values()), file, lambda _, text, __: rows.misread(text, special))
    kept = selection.apply(select.parse(spec.get("select", select.DATA_MIXING), "recipe.select"), usable, out, refused)
    with file.open("rb") as responses:
        train = [(found[r.id], rows.text(r, found[r.id], responses), spec["instruction"]) for r in kept]
    visual = json.loads((data / "train_visual_tokens.json").read_text())
    tokens = checks.lengths(train, visual, words, spec["cutoff_len"])
    writers.llamafactory(out / "sft", {"train": train})
    total = sum(row.origin != TRACES for row in [*usable, *(row for row, _ in refused)])
    zero = sum(row.origin == TRACES for row in kept)
    print(f"{len(kept) - zero} of {total} responses are kept, {zero} zero-pass questions with their trace")
    return {"responses": total, "kept": len(kept) - zero, "zero_pass": zero, "tokens_mean": mean(tokens)}

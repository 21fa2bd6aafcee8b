"""Self-distillation: a model's own right responses as a data set, with a card, for training and for upload."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from synergy.data import checks, datacard, records, rows, select, selection
from synergy.data.prompt import query
from synergy.data.records import Record
from synergy.data.rows import Row
from synergy.driver import handoff
from synergy.errors import UserError

TRAIN, VALIDATION = "train.jsonl", "val.jsonl"
"""As a recipe expects them below data.source (data.train, data.validation)."""


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes train.jsonl (a record per kept response, which is its trace), val.jsonl (the validation split as it is) where
    there is one, their images, selection.json and dropped.jsonl, and README.md, the card.

    Left out, with the reason: wrong responses, those that met their length limit, those that a chat template would misread, and
    rows over ``cutoff_len``. Raises UserError where nothing is left.
    """
    data, file = Path(spec["data"]) / "records", Path(spec["responses"])
    asked = records.read(data / "train.jsonl")
    steps = select.parse(spec["select"], "recipe.select")
    traces = any(isinstance(step, select.Keep) and step.zero_pass == "trace" for step in steps)
    usable, refused = rows.of_responses(asked, file, _problem(spec, data), traces)
    kept = selection.apply(steps, usable, out, refused)
    if not kept:
        raise UserError(f"no response can be trained on: {dict(Counter(why for _, why in refused))}")
    by_id = {record.id: record for record in asked}
    with file.open("rb") as responses:
        records.write(out / TRAIN, _records(kept, by_id, responses))
    splits = {"train": [by_id[row.id] for row in kept]}
    if (data / "validation.jsonl").exists():
        splits["validation"] = records.read(data / "validation.jsonl")
        records.write(out / VALIDATION, splits["validation"])
    for name in sorted({name for found in splits.values() for record in found for name in record.images}):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        handoff.link(data / name, out / name)
    figures = datacard.figures([*usable, *(row for row, _ in refused)], kept)
    report = json.loads((out / selection.REPORT).read_text())
    made = datacard.provenance(file)
    (out / datacard.FILE).write_text(datacard.text(spec, figures, report, made, splits), encoding="utf-8")
    print(
        f"{figures['kept_rows']} rows of {figures['kept_questions']} questions kept, of {figures['responses']} responses to "
        f"{figures['questions']} questions"
    )
    return figures


def _problem(spec: Mapping[str, Any], data: Path) -> Any:
    """Why a right response is left out."""
    words, cutoff = checks.tokenizer(Path(spec["base"])), spec["cutoff_len"]
    special = rows.special_tokens(words)
    visual = json.loads((data / "train_visual_tokens.json").read_text())

    def problem(record: Record, text: str, ended: str | None) -> str | None:
        if ended not in (None, "stop"):
            return f"not ended by itself ({ended})"
        if why := rows.unusable(text, special):
            return why
        asked = query(record.question, record.choices, spec["instruction"])
        most = len((asked + text).encode()) + sum(visual[name] for name in record.images) + checks.TEMPLATE_TOKENS
        if cutoff and most > cutoff:  # no token is shorter than a byte, so most texts need not be counted
            (tokens,) = checks.lengths([(record, text, spec["instruction"])], visual, words, None)
            if tokens > cutoff:
                return f"over sft.config.cutoff_len={cutoff}"
        return None

    return problem


def _records(kept: Sequence[Row], by_id: Mapping[str, Record], responses: Any) -> Iterator[Record]:
    """Each row as a record. Further rows of a question get the response's number after its id, since ids are unique."""
    seen: set[str] = set()
    for row in kept:
        name = row.id if row.id not in seen else f"{row.id}#{row.index}"
        if name in seen or (name != row.id and name in by_id):
            raise UserError(f"record {name!r}: this id is needed for another response to {row.id!r}; rename the record")
        seen.add(name)
        yield replace(by_id[row.id], id=name, trace=rows.text(row, by_id[row.id], responses))

"""Writers: records in the format of each framework.

LLaMA-Factory: ShareGPT JSON with ``dataset_info.json`` (tags are compulsory for OpenAI roles). verl: parquet with prompt,
images, reward_model, data_source and extra_info. VLMEvalKit: TSV with base64 images.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synergy.data.prompt import query
from synergy.data.records import Record

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@dataclass(frozen=True)
class Turn:
    """A question of an RL round: its record, and the beginning of the trace that the policy continues (or '').

    more: what else the row's extra_info brings, the same keys in all rows of a file (synergy/data/within.py).
    """

    record: Record
    prefix: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def image_marks(record: Record) -> str:
    return "<image>" * len(record.images)


def llamafactory(folder: Path, splits: Mapping[str, Sequence[tuple[Record, str, str | None]]]) -> None:
    """One dataset per split from (record, response, instruction) rows; images relative to the media folder."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {}
    for name, rows in splits.items():
        texts = [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": image_marks(record) + query(record.question, record.choices, instruction),
                    },
                    {"role": "assistant", "content": response},
                ],
                "images": list(record.images),
            }
            for record, response, instruction in rows
        ]
        (folder / f"{name}.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        columns = {"messages": "messages", "images": "images"}
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n")


def verl(
    path: Path,
    turns: Sequence[Turn],
    media: Path,
    instruction: str,
    prefix_rollouts: int | None = None,
    split: str = "train",
) -> None:
    """verl's parquet, one row per question in the order RL sees them. Only rollouts of the split train are recorded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cache: dict[str, bytes] = {}

    def image(name: str) -> dict[str, Any]:
        if name not in cache:
            cache[name] = (media / name).read_bytes()
        return {"bytes": cache[name], "path": None}

    rows: list[dict[str, Any]] = [
        {
            "data_source": "synergy",
            "prompt": [
                {
                    "role": "user",
                    "content": image_marks(turn.record) + query(turn.record.question, turn.record.choices, instruction),
                }
            ],
            "images": [image(name) for name in turn.record.images],
            "reward_model": {"style": "rule", "ground_truth": turn.record.answer},
            "extra_info": {
                "id": turn.record.id,
                "index": index,
                "split": split,
                "choices": json.dumps(turn.record.choices) if turn.record.choices else "",
                "prefix": turn.prefix,
                "prefix_rollouts": -1 if prefix_rollouts is None else prefix_rollouts,
                **turn.more,
            },
        }
        for index, turn in enumerate(turns)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=256)


def vlmevalkit(path: Path, records: Sequence[Record], media: Path) -> None:
    """A benchmark as VLMEvalKit reads it: index, question, answer, image (base64), A, B, … for choices, plus our columns."""
    letters = sorted({letter for record in records for letter in record.choices or {}})
    columns = ["index", "id", "image", "question", *letters, "answer", "difficulty_level", "passes", "kind", "steps"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
        out.writeheader()
        for index, record in enumerate(records):
            images = [base64.b64encode((media / name).read_bytes()).decode() for name in record.images]
            row: dict[str, Any] = {
                "index": index,
                "id": record.id,
                "image": images[0] if len(images) == 1 else json.dumps(images),
                "question": record.question,
                "answer": record.answer,
                "difficulty_level": record.level,
                "passes": record.passes,
                "kind": record.kind,
                "steps": record.steps,
            }
            out.writerow({**row, **(record.choices or {})})

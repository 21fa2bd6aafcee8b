"""Writers: records in the format of each framework.

LLaMA-Factory: ShareGPT JSON with ``dataset_info.json`` (tags are compulsory for OpenAI roles). verl: parquet with prompt,
images, reward_model, data_source and extra_info. VLMEvalKit: TSV with base64 images.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from synergy.data import records as questions
from synergy.data.prompt import query
from synergy.data.records import Record

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@dataclass(frozen=True)
class Turn:
    """A question of an RL round: its record, and the beginning of the trace that the policy continues (or '').

    more: what else the row's extra_info brings, the same keys in all rows of a file (synergy/data/within.py). text: ``whole``
    of the record, if it is at hand.
    """

    record: Record
    prefix: str = ""
    more: Mapping[str, str | bool] = field(default_factory=dict)
    text: str = ""


def image_marks(record: Record) -> str:
    return "<image>" * len(record.images)


def whole(record: Record) -> str:
    """The record in JSON, for a column ``record`` beside a framework's own, so that nothing is lost on the way."""
    return json.dumps(questions.row(record), ensure_ascii=False)


def llamafactory(
    folder: Path, splits: Mapping[str, Iterable[tuple[Record, str, str | None]]], lossless: bool = False
) -> dict[str, int]:
    """One dataset per split from (record, response, instruction) rows, which are written as they come; images relative to the
    media folder. lossless: each row has its ``record`` too, which LLaMA-Factory leaves alone. Returns rows per split."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, rows in splits.items():
        counts[name] = 0
        with (folder / f"{name}.json").open("w", encoding="utf-8") as stream:
            stream.write("[")
            for record, response, instruction in rows:
                stream.write(",\n " if counts[name] else "\n ")
                stream.write(llamafactory_row(record, response, instruction, whole(record) if lossless else ""))
                counts[name] += 1
            stream.write("\n]\n")
    dataset_info(folder, splits)
    return counts


def llamafactory_row(record: Record, response: str, instruction: str | None, text: str = "") -> str:
    """A row as a line of JSON. text: ``whole`` of the record, to go with it; '': it does not."""
    asked = image_marks(record) + query(record.question, record.choices, instruction)
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": response}],
        "images": list(record.images),
    }
    return json.dumps({**row, "record": text} if text else row, ensure_ascii=False)


def dataset_info(folder: Path, splits: Iterable[str]) -> None:
    """What LLaMA-Factory needs to know of ``<split>.json``."""
    columns = {"messages": "messages", "images": "images"}
    told = {"formatting": "sharegpt", "columns": columns, "tags": TAGS}
    info = {name: {"file_name": f"{name}.json", **told} for name in splits}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n")


def verl(
    path: Path,
    turns: Iterable[Turn],
    media: Path | Callable[[str], bytes],
    instruction: str,
    prefix_rollouts: int | None = None,
    split: str = "train",
    lossless: bool = False,
    first: int = 0,
    rollouts: int | None = None,
) -> int:
    """verl's parquet, one row per question in the order RL sees them. Only rollouts of the split train are recorded.

    Rows are written as they come, in groups of ``GROUP`` rows or ``GROUP_BYTES`` of images, and pictures as they are: they are
    compressed already. media: the folder of the images, or what gives their bytes; lossless: each row has its ``record`` too;
    first: the index of the first row; rollouts: how many verl generates of each question, in place of its rollout.n. Returns
    the number of rows.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    turns = iter(turns)
    first_turn = next(turns, None)
    schema = _verl_schema(lossless, first_turn.more if first_turn else {}, rollouts)
    own = {} if rollouts is None else {ROLLOUTS: rollouts}
    options: dict[str, Any] = {
        "compression": {"images.list.element.bytes": "NONE", "prompt.list.element.content": "SNAPPY"},
        "use_dictionary": ["data_source", "reward_model.style", "extra_info.split"],
        "write_statistics": False,
    }
    read = media if callable(media) else lambda name: (media / name).read_bytes()
    rows: list[dict[str, Any]] = []
    images: list[list[bytes]] = []
    count = size = 0
    with pq.ParquetWriter(path, schema, **options) as out:
        for turn in chain([first_turn] if first_turn else [], turns):
            images.append([read(name) for name in turn.record.images])
            row = _verl_row(turn, first + count, instruction, prefix_rollouts, split) | own
            rows.append({**row, "record": turn.text or whole(turn.record)} if lossless else row)
            count, size = count + 1, size + sum(map(len, images[-1]))
            if len(rows) == GROUP or size > GROUP_BYTES:
                out.write_table(_group(rows, images, schema))
                rows, images, size = [], [], 0
        if rows:
            out.write_table(_group(rows, images, schema))
    return count


GROUP, GROUP_BYTES = 256, 32 << 20
ROLLOUTS = "__rollout_n__"
"""verl's column of how many rollouts a row has (trainer/ppo/v1/agent_loop_tq.py)."""


def _group(rows: list[dict[str, Any]], images: list[list[bytes]], schema: Any) -> Any:
    """A table of the rows, with the images that belong to each."""
    import pyarrow as pa

    flat = [data for some in images for data in some]
    starts = [0, *accumulate(map(len, images))]
    cells = pa.StructArray.from_arrays(
        [pa.array(flat, pa.binary()), pa.nulls(len(flat), pa.string())], ["bytes", "path"]
    )
    column = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), cells)
    table = pa.Table.from_pylist(rows, schema.remove(schema.get_field_index("images")))
    return table.add_column(schema.get_field_index("images"), "images", column).cast(schema)


def _verl_schema(lossless: bool, more: Mapping[str, str | bool], rollouts: int | None = None) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    told = {name: pa.bool_() if isinstance(value, bool) else text for name, value in more.items()}
    fields = {
        "data_source": text,
        "prompt": pa.list_(pa.struct({"role": text, "content": text})),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": text})),
        "reward_model": pa.struct({"style": text, "ground_truth": text}),
        "extra_info": pa.struct(
            {
                "id": text,
                "index": number,
                "split": text,
                "choices": text,
                "prefix": text,
                "prefix_rollouts": number,
                **told,
            }
        ),
    }
    fields |= {} if rollouts is None else {ROLLOUTS: number}
    return pa.schema({**fields, "record": text} if lossless else fields)


def _verl_row(turn: Turn, index: int, instruction: str, prefix_rollouts: int | None, split: str) -> dict[str, Any]:
    record = turn.record
    return {
        "data_source": "synergy",
        "prompt": [
            {"role": "user", "content": image_marks(record) + query(record.question, record.choices, instruction)}
        ],
        "reward_model": {"style": "rule", "ground_truth": record.answer},
        "extra_info": {
            "id": record.id,
            "index": index,
            "split": split,
            "choices": json.dumps(record.choices) if record.choices else "",
            "prefix": turn.prefix,
            "prefix_rollouts": -1 if prefix_rollouts is None else prefix_rollouts,
            **turn.more,
        },
    }


def vlmevalkit(path: Path, records: Sequence[Record], media: Path, lossless: bool = False) -> None:
    """A benchmark as VLMEvalKit reads it: index, question, answer, image (base64), A, B, … for choices, plus our columns.
    lossless: each row has its ``record`` too."""
    letters = sorted({letter for record in records for letter in record.choices or {}})
    columns = ["index", "id", "image", "question", *letters, "answer", "difficulty_level", "passes", "kind", "steps"]
    columns += ["record"] if lossless else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        # Quoted, since csv leaves a lone carriage return bare, and pandas takes one for the end of the row.
        out = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
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
            row |= {"record": whole(record)} if lossless else {}
            out.writerow({**row, **(record.choices or {})})

"""Small parquet files in the published layout of the paper's five benchmarks, with their difficulty columns."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LEVEL, RATE = "difficulty_level_for_qwen2.5_vl_7b", "passrate_for_qwen2.5_vl_7b"


def picture(seed: int, mode: str = "RGB", form: str = "PNG") -> bytes:
    """Noise: any lossy step would change it."""
    out = io.BytesIO()
    size = (56, 28)
    raw = random.Random(seed).randbytes(size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands()))
    Image.frombytes(mode, size, raw).save(out, form)
    return out.getvalue()


def cell(seed: int) -> dict[str, Any]:
    return {"bytes": picture(seed), "path": f"{seed}.png"}


def tagged(row: dict[str, Any], level: Any, rate: Any) -> dict[str, Any]:
    return {**row, LEVEL: level, RATE: rate}


MATHVISION = [
    {"id": "4", "question": "Which?\n<image1>", "options": ["A", "B", "C"], "image": "images/4.jpg", "level": 9},
    {"id": "5", "question": "How many?\r\n<image1>", "options": ["3", "4"], "image": "images/5.jpg", "level": 9},
    {"id": "6", "question": "How long?", "options": [], "image": "images/6.jpg", "level": 9},
]
MATHVERSE = [
    {
        "sample_index": "1",
        "question": "As shown, angle?\nChoices:\nA:100°\nB:80°",
        "answer": "B",
        "question_type": "multi-choice",
    },
    {"sample_index": "2", "question": "", "answer": "14", "question_type": ""},
]
META = {"task": "geometry", "skills": ["algebra", "counting"]}
MATHVISTA = [
    {"pid": "1", "query": "Hint: float.\nQ1", "choices": None, "answer": "1.2", "answer_type": "float", "precision": 1.0},
    {"pid": "2", "query": "Hint: letter.\nQ2\nChoices:\n(A) red\n(B) blue", "choices": ["red", "blue"], "answer": "blue",
     "answer_type": "text", "precision": None},
]  # fmt: skip
MMMU = [
    {
        "id": "validation_Art_1",
        "question": "<image 1> and <image 2>?",
        "options": "['x, y', '<image 3>']",
        "answer": "A",
        "n": 3,
    },
    {
        "id": "validation_Art_2",
        "question": "How much is <image 1>?",
        "options": "[]",
        "answer": "['24/7', '3.429']",
        "n": 1,
    },
]
MMSTAR = [
    {"index": 0, "question": "Which colour?\nOptions: A: red, or so., B: blue, C: None", "answer": "C"},
    {"index": 1, "question": "Which number?\nOptions: A: 3, B: 4, C: 5, D: 6", "answer": "B"},
]


def write(folder: Path) -> Path:
    """All five below ``folder``, each in a folder of its kind."""
    rows = [
        {**row, "decoded_image": cell(i), "answer": "B3"[i == 2], "subject": "logic"}
        for i, row in enumerate(MATHVISION)
    ]
    _save(
        folder / "mathvision/data/test-00000-of-00001.parquet",
        [tagged(r, i + 1, (14, 9, 5)[i]) for i, r in enumerate(rows)],
    )
    _save(folder / "mathvision/data/testmini-00000-of-00001.parquet", [tagged(rows[0], 5, 0)])
    rows = [
        {**row, "image": cell(i), "query_cot": f"Reason first.\nQuestion: {row['question'] or 'see the image'}",
         "question_for_eval": row["question"] or "How long?", "metadata": {"split": "testmini"}}
        for i, row in enumerate(MATHVERSE)
    ]  # fmt: skip
    _save(
        folder / "mathverse/testmini.parquet",
        [tagged(row, f"L{i + 4}", (0.25, 0.0625)[i]) for i, row in enumerate(rows)],
    )
    rows = [
        {**row, "decoded_image": cell(i), "unit": None, "question_type": "", "metadata": META}
        for i, row in enumerate(MATHVISTA)
    ]
    _save(folder / "mathvista/data/testmini-00000-of-00001-ab.parquet", [tagged(row, "Level 2", 0.5) for row in rows])
    for i, row in enumerate(MMMU):
        images = {f"image_{n}": cell(n) if n <= row["n"] else None for n in range(1, 8)}
        name = "mmmu/" + ("Accounting", "Art")[i] + "/validation-00000-of-00001.parquet"
        _save(folder / name, [tagged({**row, **images, "subfield": "Drawing"}, "3", 6)])
    rows = [{**row, "image": picture(i), "category": "coarse", "l2_category": "scene"} for i, row in enumerate(MMSTAR)]
    _save(folder / "mmstar/mmstar.parquet", [tagged(row, 1.0, 1.0) for row in rows])
    return folder


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def change(path: Path, column: str, values: list[Any] | None) -> None:
    """Rewrites one column; None: drops it."""
    table = pq.read_table(path).drop_columns([column])
    pq.write_table(table if values is None else table.append_column(column, pa.array(values)), path)

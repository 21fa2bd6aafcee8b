"""Small data sets in the layouts in which long traces and questions are published, and files that are out to do harm."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from published import picture

TRACE = "<think>\nOne, two, three.\n</think>\nThere are \\boxed{3}."


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def s1(folder: Path) -> Path:
    """simplescaling/s1K: trajectories in a list."""
    own = {"cot_type": "math", "source_type": "AIME", "metadata": "{}", "cot": None}
    rows = [
        {
            **own,
            "question": f"{n}?",
            "solution": solution,
            "thinking_trajectories": ["Hm."],
            "attempt": "So \\boxed{3}.",
        }
        for n, solution in enumerate(["3", "It is clear that \\boxed{3}.", "By induction, QED {"])
    ]
    parquet(folder / "data/train-00000-of-00001.parquet", rows)
    return folder


def s1_1(folder: Path) -> Path:
    """simplescaling/s1K-1.1: DeepSeek's columns beside Gemini's."""
    own = {"cot_type": "math", "source_type": "AIME", "gemini_attempt": "no", "gemini_thinking_trajectory": "no"}
    rows = [
        {
            **own,
            "question": f"{n}?",
            "solution": "3",
            "deepseek_thinking_trajectory": "Wait.",
            "deepseek_attempt": "\\boxed{3}",
        }
        for n in range(3)
    ]
    parquet(folder / "data/train-00000-of-00001.parquet", rows)
    return folder


def mm_eureka(folder: Path) -> Path:
    """JSONL with file:// addresses; a blank picture where there is none."""
    (folder / "images").mkdir(parents=True)
    (folder / "images/1.png").write_bytes(picture(1))
    Image.new("RGB", (224, 224), "white").save(folder / "images/blank.png")
    rows = [
        {
            "id": str(n),
            "conversations": [{"role": "system", "content": "Solve."}, {"role": "user", "content": f"Angle {n}?"}],
            "answer": "30",
            "image_urls": [f"file://{folder}/images/{name}.png"],
        }
        for n, name in enumerate(["1", "blank"])
    ]
    return jsonl(folder / "train.jsonl", rows)


def mmk12(folder: Path) -> Path:
    rows = [
        {"id": f"k{n}", "question": "<image>How long?", "answer": "3", "subject": "math",
         "image": {"bytes": picture(n), "path": f"{n}.png"}}
        for n in range(3)
    ]  # fmt: skip
    parquet(folder / "data/train-00000-of-00001.parquet", rows[:2])
    parquet(folder / "data/test-00000-of-00001.parquet", rows[2:])
    return folder


def sharegpt(folder: Path, names: tuple[str, str] = ("from", "value"), rows: int = 3) -> Path:
    """LLaMA-Factory's; the answer is the response's box."""
    (folder / "img").mkdir(parents=True)
    (folder / "img/0.png").write_bytes(picture(0))
    role, text = names
    turns = [{role: "human", text: "<image>How many?"}, {role: "gpt", text: TRACE}]
    made = [{"conversations": turns, "images": ["img/0.png"], "id": f"g{n}"} for n in range(rows)]
    (folder / "train.json").write_text(json.dumps(made, indent=1))
    return folder


def zip_bomb(path: Path) -> Path:
    """A member that unpacks to 300 MB from 300 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.png", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    return path


def pixel_bomb(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few kilobytes that claims, and has, 3.6 billion black pixels."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, lines = zlib.compressobj(9), io.BytesIO()
    for _ in range(side // 100):
        lines.write(packer.compress(bytes((side // 8 + 1) * 100)))
    lines.write(packer.flush())
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", lines.getvalue()) + block(b"IEND", b"")
    )
    return path

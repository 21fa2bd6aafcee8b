"""Reads checkpoints in the safetensors format without torch: names, shapes and dtypes from the headers, values through numpy.

Format: https://github.com/huggingface/safetensors - 8 bytes length, JSON header, data. Names are compared in the layout that
Qwen2.5-VL was published in (``visual.*``, ``model.*``): transformers 5.5 writes a mixture, which mergekit and vLLM don't know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk. stored: its name in the file. shape: as saved. start, end: byte range within the file."""

    name: str
    stored: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def published(name: str) -> str:
    """The published name of a tensor, from any name that transformers or FSDP give it."""
    name = re.sub(r"^(_fsdp_wrapped_module\.|module\.)+", "", name)
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset of the data. Raises UserError for a torn or foreign file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= MAX_HEADER:
                raise ValueError("no safetensors header")
            parsed = json.loads(stream.read(length))
        return parsed, 8 + length
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error}); make the checkpoint again") from error


def files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, by its index if it has one."""
    return [folder / name for name in sorted(set(_weight_map(folder).values()) or {SINGLE})]


def _weight_map(folder: Path) -> dict[str, str]:
    """Stored name -> file, by the index; empty without one."""
    index = folder / INDEX
    return dict(json.loads(index.read_text())["weight_map"]) if index.exists() else {}


def read(folder: Path) -> dict[str, Tensor]:
    """Published name -> tensor, each from the file that the index names. Raises UserError when a file is missing, torn, or its
    byte ranges don't fit."""
    found: dict[str, Tensor] = {}
    owner = _weight_map(folder)
    for file in files(folder):
        entries, offset = header(file)
        size = file.stat().st_size
        for stored, entry in entries.items():
            if stored == "__metadata__" or owner.get(stored, file.name) != file.name:
                continue
            start, end = (offset + o for o in entry["data_offsets"])
            count = 1
            for side in entry["shape"]:
                count *= side
            if end > size or end - start != count * _WIDTH.get(entry["dtype"], 0):
                raise UserError(
                    f"{file}: tensor {stored} is cut short or has an unknown dtype; make the checkpoint again"
                )
            name = published(stored)
            if name in found:
                raise UserError(f"{folder}: tensor {name} is there twice")
            found[name] = Tensor(name, stored, file, entry["dtype"], tuple(entry["shape"]), start, end)
    return found


def tied(folder: Path) -> bool:
    """Whether the model shares its input and output embedding; the nested text_config has the last word (transformers 5)."""
    config = json.loads((folder / "config.json").read_text())
    outer = config.get("tie_word_embeddings", False)
    return bool(config.get("text_config", {}).get("tie_word_embeddings", outer))


def chunks(tensor: Tensor, size: int = 1 << 24) -> Iterator[bytes]:
    """The tensor's bytes in pieces of at most ``size``."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.end - tensor.start
        while left > 0:
            piece = stream.read(min(size, left))
            if not piece:
                raise UserError(f"{tensor.file}: ends inside tensor {tensor.name}; make the checkpoint again")
            left -= len(piece)
            yield piece


def finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity; True for other dtypes."""
    import numpy as np

    kind = FLOATS.get(tensor.dtype)
    if kind is None:
        return True
    for piece in chunks(tensor):
        values = np.frombuffer(piece, dtype=kind)
        ok = (values & 0x7F80) != 0x7F80 if tensor.dtype == "BF16" else np.isfinite(values)
        if not bool(ok.all()):
            return False
    return True


def cast(piece: bytes, source: str, target: str) -> bytes:
    """Converts float data between F32, F16 and BF16; to BF16 with round-to-nearest-even, as torch does."""
    import numpy as np

    if source == target:
        return piece
    if source == "BF16":
        values = (np.frombuffer(piece, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(piece, FLOATS[source]).astype("<f4")
    if target == "BF16":
        bits = values.view("<u4").astype("<u8")
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        return bytes(np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes())
    return bytes(values.astype(FLOATS[target]).tobytes())

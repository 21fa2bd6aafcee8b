"""Reads checkpoints in the safetensors format without torch: names, shapes and dtypes from the headers, values through numpy.

Format: https://github.com/huggingface/safetensors - 8 bytes length, JSON header, data. Names are compared in the layout that
Qwen2.5-VL was published in (``visual.*``, ``model.*``): transformers 5.5 writes a mixture, which mergekit and vLLM don't know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}
_INFINITY = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
"""Float dtype -> the bits of infinity."""
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_HEADER = 100_000_000
AGAIN = "copy or make the checkpoint again"


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
        if not isinstance(parsed, dict):
            raise ValueError("its header is no object")
        return parsed, 8 + length
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error}); {AGAIN}") from error


def files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, by its index if it has one."""
    return [folder / name for name in sorted(set(_weight_map(folder).values()) or {SINGLE})]


def _weight_map(folder: Path) -> dict[str, str]:
    """Stored name -> file, by the index; empty without one. Raises UserError for an index that says nothing, names a file
    elsewhere, or lies beside a whole model: loaders differ in which of the two they take."""
    index = folder / INDEX
    if not index.exists():
        return {}
    try:
        found = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a readable index ({error}); {AGAIN}") from error
    if not found or any(Path(name).name != name for name in found.values()):
        raise UserError(f"{index}: it names no weight file, or one in another folder; {AGAIN}")
    if (folder / SINGLE).exists() and SINGLE not in found.values():
        raise UserError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    return found


def read(folder: Path) -> dict[str, Tensor]:
    """Published name -> tensor, each from the file that the index names. Raises UserError where index, headers and files don't
    agree: a file or entry that is missing, a file cut short or too long, an unknown dtype."""
    found: dict[str, Tensor] = {}
    owner = _weight_map(folder)
    for file in files(folder):
        for tensor in tensors(file):
            if owner and tensor.stored not in owner:
                raise UserError(
                    f"{folder / INDEX}: it has no entry for {tensor.stored} of {file.name}, which a loader would fill with "
                    f"random numbers; {AGAIN}"
                )
            if owner.get(tensor.stored, file.name) != file.name:
                continue
            if tensor.name in found:
                raise UserError(f"{folder}: tensor {tensor.name} is there twice; {AGAIN}")
            found[tensor.name] = tensor
    if lost := sorted(set(owner) - {tensor.stored for tensor in found.values()}):
        raise UserError(f"{folder / owner[lost[0]]}: it lacks {lost[0]}, which {INDEX} says it holds; {AGAIN}")
    return found


def parameters(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in them."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def tensors(file: Path) -> list[Tensor]:
    """The tensors of one file in the order of their bytes, which must fill it without gaps."""
    entries, offset = header(file)
    found = []
    for stored, entry in entries.items():
        if stored == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"])
            start, end = (offset + int(at) for at in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: its header says nothing clear of {stored} ({error}); {AGAIN}") from error
        if end - start != math.prod(shape) * _WIDTH.get(dtype, -1):
            raise UserError(f"{file}: tensor {stored} has an unknown dtype or not as many bytes as its shape; {AGAIN}")
        found.append(Tensor(published(stored), stored, file, dtype, shape, start, end))
    found.sort(key=lambda tensor: (tensor.start, tensor.end))
    size, at = file.stat().st_size, offset
    for tensor in found:
        if tensor.start != at or tensor.end > size:
            raise UserError(f"{file}: tensor {tensor.stored} is cut short, or lies over another; {AGAIN}")
        at = tensor.end
    if at != size:
        raise UserError(f"{file}: {size - at} bytes behind its last tensor; {AGAIN}")
    return found


def config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises UserError for one that can't be read."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable config ({error}); {AGAIN}") from error


def tied(folder: Path) -> bool:
    """Whether the model shares its input and output embedding; the nested text_config has the last word (transformers 5)."""
    told = config(folder)
    outer = told.get("tie_word_embeddings", False)
    return bool((told.get("text_config") or {}).get("tie_word_embeddings", outer))


def chunks(tensor: Tensor, size: int = 1 << 24) -> Iterator[bytes]:
    """The tensor's bytes in pieces of at most ``size``."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.end - tensor.start
        while left > 0:
            piece = stream.read(min(size, left))
            if not piece:
                raise UserError(f"{tensor.file}: ends inside tensor {tensor.name}; {AGAIN}")
            left -= len(piece)
            yield piece


def finite(piece: memoryview | bytes, dtype: str) -> bool:
    """Whether values of a floating-point dtype are neither NaN nor infinity; True for other dtypes.

    By the bits: such a value is one whose exponent is all ones, as a signed (positive) or unsigned (negative) integer larger
    than any other. Two maxima are several times faster than looking at floats, and bfloat16 is none of numpy's.
    """
    import numpy as np

    if dtype not in _INFINITY:
        return True
    width, infinity = _WIDTH[dtype], _INFINITY[dtype]
    signed, unsigned = np.frombuffer(piece, f"<i{width}"), np.frombuffer(piece, f"<u{width}")
    largest = 1 << (8 * width - 1)
    return not len(signed) or (int(signed.max()) < infinity and int(unsigned.max()) < infinity + largest)


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
        bits = values.view("<u4")
        rounded = bits >> 16  # in place from here on: a pass over memory costs more than the sums
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits  # wraps around for NaN alone
        halves = rounded.view("<u2")[1::2].copy()
        if (nan := np.isnan(values)).any():
            halves[nan] = 0x7FC0
        return halves.tobytes()
    return bytes(values.astype(FLOATS[target]).tobytes())

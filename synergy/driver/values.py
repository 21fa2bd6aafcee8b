"""Values of tensors on disk as numpy arrays, several checkpoints side by side, in pieces: 7B fits in little memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from synergy.driver import checkpoint
from synergy.driver.checkpoint import FLOATS, Tensor

T = TypeVar("T")
PIECE = 1 << 17
"""Elements at a time: of fewer, threads wait for each other's turn at the interpreter; more leave the cache."""
ROUNDOFF = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Largest relative error of rounding to the nearest number of a dtype: 2 to minus its bits of precision."""
SMALLEST = {"F64": 0.0, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}
"""Smallest positive number of a dtype: below it, rounding is absolute."""


def doubles(piece: bytes, dtype: str) -> np.ndarray:
    """float64 values, exact; bfloat16, which numpy lacks, is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(piece, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(piece, FLOATS[dtype]).astype(np.float64)


def side_by_side(tensors: Sequence[Tensor], piece: int = PIECE) -> Iterator[tuple[np.ndarray, ...]]:
    """Flat float64 pieces of tensors of one shape and any float dtypes, equal in length."""
    widths = [np.dtype(FLOATS[tensor.dtype]).itemsize for tensor in tensors]
    streams = [checkpoint.chunks(tensor, piece * width) for tensor, width in zip(tensors, widths, strict=True)]
    for parts in zip(*streams, strict=True):
        yield tuple(doubles(part, tensor.dtype) for part, tensor in zip(parts, tensors, strict=True))


def each(work: Callable[[Tensor], T], tensors: Iterable[Tensor]) -> dict[str, T]:
    """What ``work`` makes of each tensor, by published name, in the order of ``tensors``; on all processors, the largest first.
    Raises what the first of these raises."""
    listed = list(tensors)
    largest_first = sorted(listed, key=lambda tensor: tensor.end - tensor.start, reverse=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip((tensor.name for tensor in largest_first), pool.map(work, largest_first), strict=True))
    return {tensor.name: made[tensor.name] for tensor in listed}

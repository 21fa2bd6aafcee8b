"""One pass over a file's bytes: its BLAKE3 and, of weights, whether all values are finite; several files at a time.

Hashing, reading and numpy's maxima all let other threads run, so files are read at the speed of the disk. What was read is
remembered by device, inode, size and modification time, which a rename and a hard link keep: a checkpoint that was verified
is not read again to be published.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from synergy.driver import checkpoint
from synergy.errors import UserError

PIECE = 1 << 22
"""Bytes at a time: smaller ones cost more in handing the interpreter from thread to thread than the cache saves."""
THREADS = min(16, (os.cpu_count() or 1) * 2)
"""Files at a time: while some wait for the disk, others are hashed."""
CLOCK_SECONDS = 0.05
"""Coarser than any file system's clock: a file changed within it after it was read could keep its modification time."""
_seen: dict[tuple[int, ...], Content] = {}


@dataclass(frozen=True)
class Content:
    """sum: BLAKE3, hexadecimal. broken: stored name of the first tensor that holds NaN or infinity, or None."""

    sum: str
    broken: str | None = None


def content(data: bytes) -> str:
    """The sum of a file with these bytes."""
    return str(blake3(data).hexdigest())


def forget() -> None:
    """Whatever is asked next is read: a file can be changed and its date put back."""
    _seen.clear()


def read(files: Sequence[Path]) -> list[Content]:
    """The content of each file, in order. Raises OSError."""
    if sum(file.stat().st_size for file in files) <= PIECE:
        return [one(file) for file in files]  # sooner than threads start
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return list(pool.map(one, files))


def one(file: Path) -> Content:
    """The content of one file, read unless it was before. Raises OSError."""
    stat = file.stat()
    mark, settled = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), time.time() - CLOCK_SECONDS
    if mark not in _seen:
        found = _read(file)
        if stat.st_mtime > settled:
            return found
        _seen[mark] = found
    return _seen[mark]


def _read(file: Path) -> Content:
    spans = _spans(file)
    buffer = memoryview(bytearray(min(PIECE, sum(size for size, _, _ in spans))))
    total, broken = blake3(), None
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # the disk works ahead while this hashes
        for size, dtype, name in spans:
            left = size
            while left > 0:
                piece = buffer[: min(PIECE, left)]
                got = _fill(stream, piece)
                total.update(piece[:got])
                if broken is None and not checkpoint.finite(piece[:got], dtype):
                    broken = name
                left = left - got if got == len(piece) else 0  # the file ends here
    return Content(total.hexdigest(), broken)


def _fill(stream: io.FileIO, piece: memoryview) -> int:
    """Bytes read: fewer than asked for only at the end of the file, so that no value is cut."""
    got = 0
    while got < len(piece) and (more := stream.readinto(piece[got:])):
        got += more
    return got


def _spans(file: Path) -> list[tuple[int, str, str]]:
    """(bytes, dtype, stored name) of the parts that a file is made of; one part of no dtype if it is no whole weight file."""
    whole = (file.stat().st_size, "", "")
    if file.suffix != ".safetensors":
        return [whole]
    try:
        found = checkpoint.tensors(file)
    except UserError:
        return [whole]
    head = found[0].start if found else whole[0]
    return [(head, "", ""), *((tensor.end - tensor.start, tensor.dtype, tensor.stored) for tensor in found)]

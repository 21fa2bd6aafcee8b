"""Why a stage's process ended badly, as far as its log and the kernel tell: whose fault, what to do, and whether to try again.

user: a setting to change. machine: the host or its accelerators; some of these pass, and are worth another attempt. framework:
all else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Blame = Literal["user", "framework", "machine"]


@dataclass(frozen=True)
class Cause:
    """advice: what to do, as the end of a sentence. passing: whether the same may go well a little later."""

    blame: Blame
    advice: str
    passing: bool = False


DISK = Cause("machine", "the disk is full: free some, or move run.dir to a larger one; what is published is intact")
MEMORY = Cause(
    "machine",
    "the kernel killed a process for want of memory: use smaller batches or fewer workers, or a machine with more",
)
_KNOWN: tuple[tuple[str, Cause], ...] = (
    (r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]", DISK),
    (
        r"CUDA out of memory|torch\.OutOfMemoryError|HIP out of memory",
        Cause("user", "the GPU's memory is too small for these settings: lower the micro batch or turn offloading on"),
    ),
    (
        r"No available memory for the cache blocks|larger than the maximum number of tokens that can be stored in KV",
        Cause(
            "user", "vLLM has too little memory for its KV cache: raise gpu_memory_utilization or shorten the context"
        ),
    ),
    (
        r"uncorrectable ECC error|Xid \(PCI|CUDA error: (device-side|unspecified launch|hardware)|fallen off the bus",
        Cause("machine", "a GPU reported a fault", passing=True),
    ),
    (
        r"NCCL (WARN|ERROR|error)|ncclSystemError|ncclRemoteError|ncclUnhandledCudaError",
        Cause("machine", "the GPUs' communication broke", passing=True),
    ),
    (
        r"Address already in use|EADDRINUSE",
        Cause("machine", "a port was taken by something else", passing=True),
    ),
    (
        r"Connection reset by peer|Temporary failure in name resolution|Read timed out|Stale file handle",
        Cause("machine", "the network failed", passing=True),
    ),
    (
        r"raylet.*(died|failed)|RayletDied|NodeDiedError|ActorDiedError.*node|[Nn]ode (was|is) (terminated|dead)",
        Cause("machine", "a Ray node was lost", passing=True),
    ),
    (
        r"Total available GPUs \S+ is less than total desired GPUs",
        Cause(
            "machine", "the cluster has not as many free GPUs: a node was lost, or other work holds them", passing=True
        ),
    ),
)  # in order of weight: a full disk makes much else fail
_UNKNOWN = Cause("framework", "see the log")
_LOOK_AT = 64_000
"""Bytes at the end of a log: what a process says last is what it died of."""


def cause(log: Path, out_of_memory: bool = False) -> Cause:
    """out_of_memory: whether the kernel killed a process for want of memory meanwhile."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOOK_AT))
            text = stream.read().decode(errors="replace")
    except OSError:
        text = ""
    if out_of_memory:
        return MEMORY
    return next((found for pattern, found in _KNOWN if re.search(pattern, text)), _UNKNOWN)


def memory_kills() -> int:
    """How many processes the kernel has killed on this host for want of memory, this container's limit included; 0 where it
    doesn't tell."""
    total = 0
    for file, name in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        try:
            rows = dict(line.split() for line in Path(file).read_text().splitlines())
            total += int(rows.get(name, 0))
        except (OSError, ValueError):
            continue
    return total

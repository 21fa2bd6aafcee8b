"""What the operating system is asked for by the driver and by its workers alike."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from synergy.errors import UserError

HOST = "127.0.0.1"
"""Servers listen on loopback only."""
LOCAL_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "tmpfs", "ramfs", "overlay")
"""File systems that one kernel has to itself, so that its locks hold for all who can reach them."""
SMI_SECONDS = 60.0
CONTAINER_MEMORY = tuple(Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
"""Of cgroups version 2, and 1."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before any fork: `die_with_parent` runs between fork and exec


def replace_text(file: Path, text: str) -> None:
    """Readers see the old text or the new one, never a half. Raises OSError, and then leaves nothing beside the file."""
    aside = file.with_name(f".{file.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def folder_aside(place: Path, what: str, way_out: str = "free space or set run.dir") -> Iterator[Path]:
    """An empty folder beside ``place``, which replaces it at the end of a ``with`` block that raises nothing; else it goes.
    Raises UserError where it can't be written, with the way out. what: the message's name for it. Errors about other files
    go on as they are: who fills the folder reads them."""
    folder = place.with_name(f".{place.name}-{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(place.parent):
            raise
        raise UserError(f"{what} can't be written to {place}: {error.strerror or error}; {way_out}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def born(pid: int) -> str | None:
    """Which process this number means: the boot's id and the kernel's clock ticks from then to the process's start, or None if
    there is none. Unlike a time of day (psutil's ``create_time``), it stays as it is when the wall clock is set."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot}/{fields[19]}"  # field 22 of proc(5), counted from behind the name in brackets


def on_local_disk(path: Path) -> bool:
    """Whether it lies on a file system that no other host reaches; False where that is not known."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype in LOCAL_DISKS if mounts else False


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel sends SIGTERM when the parent dies, even of SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def hold_port(port: int | None) -> socket.socket:
    """Bound to the port asked for, or to any free one, without listening: until it is closed the kernel gives that port to none
    who asks for any, and a server that sets SO_REUSEADDR (vLLM, torch) may listen there. Raises UserError if the one asked for
    is in use or not allowed."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port or 0))
    except (OSError, OverflowError) as err:
        held.close()
        raise UserError(
            f"evaluate.port={port} is in use or not allowed on {HOST} ({err}): end what uses it, choose another, or "
            "set it to null for any free one"
        ) from err
    return held


def choose_ports(first: int | None, count: int) -> list[int]:
    """``count`` different ports: those from ``first`` on, or any free ones, which another process may take before they are used
    (``hold_port``). Raises UserError if one of those asked for is in use or not allowed."""
    with ExitStack() as stack:  # all at once, so that none is given out twice
        held = [stack.enter_context(hold_port(first + index if first else None)) for index in range(count)]
        return [int(one.getsockname()[1]) for one in held]


@functools.cache
def cards() -> tuple[tuple[str, int], ...]:
    """Name and bytes of memory (0: not told) of each NVIDIA GPU of this machine; nvidia-smi is asked once, and not waited for
    where it hangs, as it does with a broken driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=SMI_SECONDS
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    listed = [line.rpartition(",") for line in told if line.strip()]
    return tuple((name.strip(), int(size) * 2**20 if size.strip().isdecimal() else 0) for name, _, size in listed)


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(len(cards()))]


def gpu_memory() -> int:
    """Bytes of memory of this machine's smallest GPU; 0 where this process may use none, or it is not told."""
    return min((size for _, size in cards()), default=0) if gpus() else 0


def memory() -> int:
    """Bytes of memory of this host, or of the container, where that may use less."""
    limits = [psutil.virtual_memory().total]
    for file in CONTAINER_MEMORY:
        with suppress(OSError, ValueError):  # another version of cgroups, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def share(seen: Sequence[str], wide: int, count: int | None, setting: str) -> list[dict[str, str]]:
    """Environment of each of ``count`` vLLM engines with ``wide`` GPUs each; None: as many as the GPUs hold, at least one.

    Raises UserError, which names the setting, for more than that."""
    if count and seen and count * wide > len(seen):
        raise UserError(f"{setting}={count} needs {count * wide} GPUs, {wide} each, and here are {len(seen)}; lower it")
    count = count or max(1, len(seen) // wide)
    parts = [seen[i * wide : (i + 1) * wide] for i in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} if seen else {} for part in parts]

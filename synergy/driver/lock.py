"""One driver at a time in a run directory, by two of filelock's locks.

``.lock`` is the kernel's: it is free the moment its process ends, however that ends. On a network file system it may be
missing, or mean nothing to another host. So there is ``.driver`` beside it: a lease that its holder touches every few seconds.
Whether that heartbeat still comes is told by watching it for a while on the watcher's own monotonic clock, never by comparing
dates: neither a clock that jumps nor two hosts that disagree can make a live driver look dead. A lease whose holder is
gone for certain (the same host, another or no process of that number) is free; any other is taken over only on request.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, LeaseSettingsMismatch, SoftFileLease, Timeout

from synergy import machine
from synergy.errors import UserError

LOCK, LEASE, OWNER = ".lock", ".driver", ".owner"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""Without a heartbeat for so long a driver elsewhere is taken for gone; the same in all drivers of a directory."""
WITHOUT_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def held(root: Path, takeover: bool = False) -> Iterator[Callable[[], None]]:
    """Holds the run directory. takeover: also from a driver that gives no sign of life any more.

    Yields a check that raises UserError once another driver has taken it over from this one (which was suspended, or cut off).
    Raises UserError, which names the owner, when it is not to be had.
    """
    lease = SoftFileLease(root / LEASE, lease_duration=SILENT_SECONDS, heartbeat_interval=BEAT_SECONDS)
    with ExitStack() as stack:
        alone = _lock_kernel(root, stack)
        if alone:  # whoever wrote the lease is gone, in whatever container of this host it ran
            lease.force_break()
        _lock_lease(lease, root, takeover)
        stack.callback(lease.release)
        _sign(root)
        token = lease.token  # filelock tells it to this thread only
        yield lambda: _still(lease, token, root)


def owner(root: Path) -> str:
    """Who holds the run directory, in words."""
    told = _read(root)
    who = f"process {told['pid']} on {told['host']}, since {told['since']}: {told['command']}" if told else "unknown"
    with suppress(OSError):
        beat = time.localtime((root / LEASE).stat().st_mtime)
        who += f"; last heartbeat {time.strftime('%Y-%m-%d %H:%M:%S', beat)}"
    return who


def _lock_kernel(root: Path, stack: ExitStack) -> bool:
    """Whether the kernel's lock is held and counts for all who can reach the directory."""
    try:
        stack.enter_context(FileLock(root / LOCK, timeout=0, fallback_to_soft=False))
    except Timeout as error:
        raise _refused(root) from error
    except OSError as error:
        if error.errno not in WITHOUT_FLOCK:
            raise
        return False
    return machine.on_local_disk(root)


def _lock_lease(lease: SoftFileLease, root: Path, takeover: bool) -> None:
    try:
        with suppress(Timeout):
            lease.acquire(timeout=0)
            return
        told = _read(root)
        if told and machine.born(int(told["pid"])) == told["born"]:
            raise _refused(root)
        print(f"{root} has an owner ({owner(root)}); watching for {SILENT_SECONDS:.0f} s whether it lives", flush=True)
        if not takeover:
            _await_release(root)  # else the lease watches by itself, and is had once nothing beats any more
        lease.acquire(timeout=SILENT_SECONDS + 2 * BEAT_SECONDS if takeover else 0)
    except Timeout as error:
        raise _refused(root) from error
    except LeaseSettingsMismatch as error:
        raise UserError(f"{root} is held by another version of Synergy ({owner(root)}): {error}") from error


def _await_release(root: Path) -> None:
    """Watches the heartbeat until its file is gone. Raises UserError as soon as it moves, or when it does not for long."""
    end, first = time.monotonic() + SILENT_SECONDS, _pulse(root)
    while (now := _pulse(root)) is not None:
        if now != first:
            raise _refused(root)
        if time.monotonic() >= end:
            raise UserError(
                f"{root} has an owner that gave no sign of life for {SILENT_SECONDS:.0f} s ({owner(root)}). If it is still "
                "there, end it; if it is gone for good, the same command with run.takeover=true takes the directory over"
            )
        time.sleep(min(1.0, BEAT_SECONDS / 4))


def _pulse(root: Path) -> tuple[int, int] | None:
    """What changes with every heartbeat; opened, since a network file system asks the server only then."""
    try:
        with (root / LEASE).open("rb") as stream:
            stat = os.fstat(stream.fileno())
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _still(lease: SoftFileLease, token: str | None, root: Path) -> None:
    there = lease.owner
    if there is not None and there.token != token:
        raise UserError(
            f"another driver has taken {root} over ({owner(root)}) while this one was suspended or cut off; this one stops"
        )


def _refused(root: Path) -> UserError:
    return UserError(f"another driver works in {root} ({owner(root)}); wait for it, stop it, or set another run.dir")


def _sign(root: Path) -> None:
    told = {
        "pid": os.getpid(),
        "born": machine.born(os.getpid()),
        "host": os.uname().nodename,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(["synergy", "run", *sys.argv[1:]]),
    }
    machine.replace_text(root / OWNER, json.dumps(told) + "\n")


def _read(root: Path) -> dict[str, str] | None:
    try:
        told = json.loads((root / OWNER).read_text(encoding="utf-8"))
        return {name: str(told[name]) for name in ("pid", "born", "host", "since", "command")}
    except (OSError, ValueError, KeyError, TypeError):
        return None

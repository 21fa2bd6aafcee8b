"""What the operating system is asked for by the driver and by its workers alike."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess

from synergy.errors import UserError

HOST = "127.0.0.1"
"""Servers listen on loopback only."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before any fork: `die_with_parent` runs between fork and exec


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel sends SIGTERM when the parent dies, even of SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def choose_port(port: int | None) -> int:
    """The port asked for, or any free one. Raises UserError if the one asked for is in use or not allowed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as err:
            raise UserError(
                f"evaluate.port={port} is in use or not allowed on {HOST} ({err}): end what uses it, choose another, or set "
                "it to null for any free one"
            ) from err
        return int(probe.getsockname()[1])


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(index) for index in range(len(listed.splitlines()))]

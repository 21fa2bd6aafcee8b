"""What verl's processes serve is for themselves: VERL_USE_EXTERNAL_MODULES=…,verl_servers.

* vLLM's server gets a random key, by vLLM's own VLLM_API_KEY. verl 0.9.1 asks its servers through Ray and never over HTTP,
  so nobody needs to know it. A reward model of verl's (reward.reward_model) is asked over HTTP and without a key: for that
  one, set VLLM_API_KEY to nothing in rl.env.
* torch.distributed's store listens on its own address alone (`loopback_store`). That of vLLM is VLLM_HOST_IP: loopback, where
  Ray was told that it is alone on one host.
* The socket by which a trainer hands new weights to its vLLM lies in a folder of this user's and is this run's own. verl names
  it by Ray's job id, which is 01000000 in every cluster that a job starts for itself: two runs on one host took each other's
  socket away, and hung (vllm_rollout.py: zmq_handle; utils.py: _get_zmq_handle). A run is told by its metrics' file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import loopback_store  # noqa: F401 - changes torch
from after_import import after_import

TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
SHARED = "ipc:///tmp/"


def own_socket(handle: str) -> str:
    """verl's address of the socket, in this user's folder and with this run's name."""
    if not handle.startswith(SHARED):
        return handle
    folder = Path(f"/tmp/synergy-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's; have it removed")
    run = hashlib.sha256(os.environ.get("VERL_FILE_LOGGER_PATH", "").encode()).hexdigest()[:16]
    return f"ipc://{folder}/{run}-{handle.removeprefix(SHARED)}"


def own_sockets(transfer: Any) -> None:
    """Has verl's sender and receiver of weights meet there."""

    def placed(stock: Any) -> Any:
        def init_socket(self: Any) -> None:
            self.zmq_handle = own_socket(self.zmq_handle)
            stock(self)

        return init_socket

    for end in (transfer.BucketedWeightSender, transfer.BucketedWeightReceiver):
        end._init_socket = placed(end._init_socket)


after_import(TRANSFER, own_sockets)

os.environ.setdefault("VLLM_API_KEY", secrets.token_urlsafe(32))
if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0":
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")

"""What verl's processes serve is for themselves: VERL_USE_EXTERNAL_MODULES=…,verl_servers.

* vLLM's server gets a random key, by vLLM's own VLLM_API_KEY. verl 0.9.1 asks its servers through Ray and never over HTTP,
  so nobody needs to know it. A reward model of verl's (reward.reward_model) is asked over HTTP and without a key: for that
  one, set VLLM_API_KEY to nothing in rl.env.
* torch.distributed's store listens on MASTER_ADDR alone. torch 2.13 has no setting for it: it takes the address for its
  clients and listens on all of the machine's, unless it is given a socket that listens already, which is what this does.
  vLLM's own store has the address VLLM_HOST_IP: loopback, where Ray was told that it is alone on one host.
"""

from __future__ import annotations

import importlib
import os
import secrets
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

os.environ.setdefault("VLLM_API_KEY", secrets.token_urlsafe(32))
if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0":
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")

rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")  # the package has a function of that name
_stock = rendezvous._create_c10d_store


def create_store(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> Any:
    """torch's own function of these arguments, but that rank 0 listens on `hostname` only."""
    if rank == 0 and port and not rendezvous._torchelastic_use_agent_store():
        family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
        try:
            listener = socket.create_server((hostname, port), family=family)
        except OSError:  # a store of this process is there already, which torch shares; or what torch tells better
            return _stock(hostname, port, rank, world_size, timeout, use_libuv)
        return dist.TCPStore(
            host_name=hostname,
            port=port,
            world_size=world_size,
            is_master=True,
            timeout=timeout,
            multi_tenant=True,
            master_listen_fd=listener.detach(),
            use_libuv=use_libuv,
        )
    return _stock(hostname, port, rank, world_size, timeout, use_libuv)


rendezvous._create_c10d_store = create_store

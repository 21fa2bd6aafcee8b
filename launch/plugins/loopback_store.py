"""torch.distributed's store listens on its own address alone, from the import of this module on.

torch 2.13 has no setting for it: it takes MASTER_ADDR, or the host of tcp://, for its clients and listens on all of the
machine's addresses, unless it is given a socket that listens already, which is what this does. verl's processes import it by
`verl_servers`, vLLM's workers by vLLM's own worker_extension_cls=loopback_store.Extension.
"""

from __future__ import annotations

import importlib
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")  # the package has a function of that name
_stock = rendezvous._create_c10d_store


def listening(
    listener: socket.socket, hostname: str, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> dist.TCPStore:
    """A store that serves on `listener`, whose address it knows as `hostname`, and nowhere else."""
    port = listener.getsockname()[1]
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
        return listening(listener, hostname, world_size, timeout, use_libuv)
    return _stock(hostname, port, rank, world_size, timeout, use_libuv)


rendezvous._create_c10d_store = create_store


class Extension:
    """Adds nothing to vLLM's worker: naming it imports this module there."""

"""torchrun on one host whose store listens on loopback alone: PET_RDZV_BACKEND=loopback, PET_RDZV_ENDPOINT=127.0.0.1:0.

torchrun's own rendezvous, all of them, listen on every address of the machine (torch 2.13), and processes on it may write
into that store. torch finds this one by its entry point torchrun.handlers, in the folder synergy_plugins.dist-info beside
this file; LLaMA-Factory's launcher names no rendezvous, so that torchrun takes it from the environment.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import loopback_store
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

TIMEOUT = 600
"""Seconds that a process waits for another at the store; torch's own for static rendezvous."""


class Loopback(StaticTCPRendezvous):
    """torch's static rendezvous of one host, with its store on a free port of the endpoint's address.

    Raises ValueError for more than one node.
    """

    def __init__(self, params: RendezvousParameters) -> None:
        if params.max_nodes != 1:
            raise ValueError(f"rendezvous of one host, not of {params.max_nodes}; leave PET_RDZV_BACKEND to torchrun")
        host = params.endpoint.rsplit(":", 1)[0]
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        super().__init__(host, port, rank=0, world_size=1, run_id=params.run_id, timeout=TIMEOUT)
        self._store = loopback_store.listening(listener, host, 1, self.timeout)

    def get_backend(self) -> str:
        return "loopback"


def handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    return Loopback

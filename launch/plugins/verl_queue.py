"""Two RL jobs of one Ray cluster have each a queue of its own: VERL_USE_EXTERNAL_MODULES=…,verl_queue.

verl 0.9.1's trainer moves rollouts through TransferQueue, whose actor has one name in one namespace for the whole cluster, so
that jobs can share it (its pull request 115; interface.py: `get_actor("TransferQueueController", namespace="transfer_queue")`).
A second job, of anybody's, then finds the first one's queue: each would train on rollouts of both, and the one that ends takes
the queue along. Here the names are of the job's own namespace, where nobody else finds them. Holds for TransferQueue 0.1.11.
"""

from __future__ import annotations

from typing import Any

from after_import import after_import

PLACES = {
    "transfer_queue.interface": "TransferQueueController",
    "transfer_queue.storage.clients.ray_storage_client": "RayObjectRefStorage",
}


class _InJob:
    """Something of Ray's as ever, but that a name given to it, or asked of it, is of this job's namespace."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def get_actor(self, name: str, namespace: str) -> Any:
        return self.stock.get_actor(name)

    def options(self, *, namespace: str, **more: Any) -> Any:
        return self.stock.options(**more)


def keep_to_the_job(module: Any) -> None:
    """Has one of the modules of PLACES name and find its actor in the namespace of the job that it runs in."""
    for name in ("ray", PLACES[module.__name__]):
        setattr(module, name, _InJob(getattr(module, name)))


for place in PLACES:
    after_import(place, keep_to_the_job)

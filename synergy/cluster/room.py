"""What the driver may start now: the cluster's nodes as they are at this moment, less what its own running stages claim.

Ray places the stages; this only keeps the driver from starting what would not fit beside the rest, and has it wait, for a
while, for nodes that are not there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from synergy.cluster import lacks, needs
from synergy.cluster.needs import Need, Node
from synergy.config import Cluster
from synergy.errors import StageFailed, UserError
from synergy.stages import Stage

LOOK_SECONDS = 2.0


def nodes() -> list[Node]:
    """Those of the cluster that this process is a job of. Raises UserError outside of one."""
    from ray.util.state import list_nodes

    try:
        return [Node.of(state) for state in list_nodes(limit=10_000, filters=[("state", "=", "ALIVE")], detail=True)]
    except Exception as error:  # Ray's errors for this have no common class
        raise UserError(
            f"cluster=ray: this process is no job of a Ray cluster ({str(error).splitlines()[0][:200]}); send it there: "
            "synergy submit, with the same words"
        ) from error


@dataclass
class Room:
    """claims: name of a running stage -> what it claims. there: asks for the living nodes."""

    wait_seconds: float
    there: Callable[[], Sequence[Node]] = nodes
    claims: dict[str, Need] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, cluster: Cluster) -> Room | None:
        """None on one machine, where stages run one after the other."""
        return cls(cluster.wait_minutes * 60) if cluster.kind == "ray" else None

    def claim(self, stage: Stage) -> bool:
        """Whether the stage fits beside those that run; if so, it counts as running."""
        need = needs.of(stage)
        with self.lock:
            if need is not None and not fits([*self.claims.values(), need], self.there()):
                return False
            if need is not None:
                self.claims[stage.name] = need
            return True

    def release(self, stage: Stage) -> None:
        with self.lock:
            self.claims.pop(stage.name, None)

    def wait(self, stages: Sequence[Stage], tell: Callable[[str], None], still: Callable[[], None]) -> Stage:
        """Waits until one of them can be claimed, and claims it. tell: hears why it waits; still: called meanwhile.

        Raises StageFailed when none could be for too long."""
        end, told = time.monotonic() + self.wait_seconds, False
        while True:
            for stage in stages:
                if self.claim(stage):
                    return stage
            need = needs.of(stages[0])
            lacking = f"it needs {need}, and the cluster has {lacks.listed(self.there()) or 'no node'}"
            if time.monotonic() > end:
                raise StageFailed(
                    f"stage {stages[0].name} [machine]: {lacking}; waited {self.wait_seconds / 60:g} minutes "
                    "(cluster.wait_minutes). The same command continues once the nodes are there"
                )
            if not told:
                tell(f"waits for nodes: {lacking}")
                told = True
            still()
            time.sleep(LOOK_SECONDS)


def fits(wanted: Iterable[Need], there: Sequence[Node]) -> bool:
    """Whether all of them go side by side onto the nodes: the largest first, each onto the fullest nodes that hold it."""
    left = list(there)
    for need in sorted(wanted, key=lambda need: (need.gpus, need.nodes, need.memory_gb), reverse=True):
        left.sort(key=lambda node: (node.gpus, node.cpus))
        chosen = [index for index, node in enumerate(left) if node.holds(need)][: need.nodes]
        if len(chosen) < need.nodes:
            return False
        for index in chosen:
            left[index] = left[index].less(need)
    return True

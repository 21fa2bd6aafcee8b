"""What the driver may start now: the cluster's nodes as they are at this moment, less what its own running stages claim.

Ray places the stages; this only keeps the driver from starting what would not fit beside the rest, and has it wait, for a
while, for nodes that are not there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from synergy.cluster import lacks, needs
from synergy.cluster.needs import Need, Node
from synergy.config import Cluster
from synergy.errors import StageFailed, UserError
from synergy.stages import Stage

LOOK_SECONDS = 2.0
WATCH_SECONDS = 5.0
"""Between two looks whether a running stage has lost a node."""


def nodes() -> list[Node]:
    """Those of the cluster that this process is a job of. Raises UserError outside of one."""
    from ray.util.state import list_nodes

    try:
        return Node.living(list_nodes(limit=10_000, detail=True))
    except Exception as error:  # Ray's errors for this have no common class
        raise UserError(
            f"cluster=ray: this process is no job of a Ray cluster ({str(error).splitlines()[0][:200]}); send it there: "
            "synergy submit, with the same words"
        ) from error


def used(node: str) -> bool:
    """Whether processes of a stage that attaches by itself (verl's actors) were on a node, which may be gone."""
    from ray.util.state import list_actors

    return any(actor.node_id == node for actor in list_actors(limit=10_000, raise_on_missing_output=False))


@dataclass
class Claim:
    """Of a running stage. living: id and name of the nodes that live, when it began or at the last look; looked: when that
    was."""

    need: Need
    living: dict[str, str]
    looked: float = 0.0


@dataclass
class Room:
    """claims: by the names of running stages. there: asks for the living nodes; used: whether a node had actors."""

    wait_seconds: float
    there: Callable[[], Sequence[Node]] = nodes
    used: Callable[[str], bool] = used
    claims: dict[str, Claim] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, cluster: Cluster) -> Room | None:
        """None on one machine, where stages run one after the other."""
        return cls(cluster.wait_minutes * 60) if cluster.kind == "ray" else None

    def claim(self, stage: Stage) -> bool:
        """Whether the stage fits beside those that run; if so, it counts as running."""
        need = needs.of(stage)
        with self.lock:
            if need is None:
                return True
            there = self.there()
            if not fits([*(claim.need for claim in self.claims.values()), need], there):
                return False
            self.claims[stage.name] = Claim(need, {node.id: node.name for node in there})
            return True

    def release(self, stage: Stage) -> None:
        with self.lock:
            self.claims.pop(stage.name, None)

    def lost(self, stage: Stage) -> str | None:
        """Name of a node that went while the stage ran, and that had actors: verl waits for the answers of such a node, for ten
        minutes or for ever. Asked as often as one likes, it looks every few seconds."""
        with self.lock:
            claim = self.claims.get(stage.name)
            if claim is None or time.monotonic() < claim.looked + WATCH_SECONDS:
                return None
            claim.looked = time.monotonic()
            try:
                living = {node.id for node in self.there()}
                gone = {mark: name for mark, name in claim.living.items() if mark not in living}
                found = next((name for mark, name in gone.items() if self.used(mark)), None)
            except Exception:  # the cluster is busy with the loss; Ray's errors for this have no common class
                return None
            claim.living = {mark: name for mark, name in claim.living.items() if mark in living}
            return found

    def _claimed(self, stages: Sequence[Stage]) -> Stage | None:
        """None too where the cluster does not answer: it may be busy with the loss of a node."""
        with suppress(UserError):
            return next((stage for stage in stages if self.claim(stage)), None)
        return None

    def _listed(self) -> str:
        with suppress(UserError):
            return lacks.listed(self.there()) or "no node"
        return "no answer"

    def wait(self, stages: Sequence[Stage], tell: Callable[[str], None], still: Callable[[], None]) -> Stage:
        """Waits until one of them can be claimed, and claims it. tell: hears why it waits; still: called meanwhile.

        Raises StageFailed when none could be for too long."""
        end, told = time.monotonic() + self.wait_seconds, False
        while True:
            if (stage := self._claimed(stages)) is not None:
                return stage
            lacking = f"it needs {needs.of(stages[0])}, and the cluster has {self._listed()}"
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
    left, wanted = list(there), list(wanted)
    for need in sorted(wanted, key=lambda need: (need.gpus, need.nodes, need.memory_gb), reverse=True):
        left.sort(key=lambda node: (node.gpus, node.cpus))
        chosen = [index for index, node in enumerate(left) if node.holds(need)][: need.nodes]
        if len(chosen) < need.nodes:
            return False
        for index in chosen:
            left[index] = left[index].less(need)
    return sum(node.cpus for node in left) >= sum(need.other_cpus for need in wanted)

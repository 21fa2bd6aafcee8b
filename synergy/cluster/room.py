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


def used(namespace: str) -> set[str]:
    """Ids of the nodes that have living actors of a stage that attaches by itself (verl's), by its namespace."""
    from ray.util.state import list_actors

    mine = [("state", "=", "ALIVE"), ("ray_namespace", "=", namespace)]
    found = list_actors(filters=mine, detail=True, limit=10_000, raise_on_missing_output=False)
    return {actor.node_id for actor in found}


@dataclass
class Claim:
    """Of a running stage. used: id and name of the nodes that live and had actors of it; looked: when that was seen."""

    need: Need
    used: dict[str, str] = field(default_factory=dict)
    looked: float = 0.0


@dataclass
class Room:
    """claims: by the names of running stages. there: asks for the living nodes; used: for those with actors; answered: whether
    the cluster ever told its nodes: later on, one that doesn't is busy with the loss of a node, say, and nothing fits."""

    wait_seconds: float
    there: Callable[[], Sequence[Node]] = nodes
    used: Callable[[str], set[str]] = used
    claims: dict[str, Claim] = field(default_factory=dict)
    answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, cluster: Cluster) -> Room | None:
        """None on one machine, where stages run one after the other."""
        return cls(cluster.wait_minutes * 60) if cluster.kind == "ray" else None

    def claim(self, stages: Sequence[Stage]) -> list[Stage]:
        """Those of the stages that fit beside what runs, and beside those before them here; they count as running. One look at
        the cluster for all. Raises UserError where it has never answered."""
        wanted = {stage.name: needs.of(stage) for stage in stages}
        with self.lock:
            there = self._look() if any(wanted.values()) else []
            for name, need in wanted.items():
                if need is not None and fits([*(claim.need for claim in self.claims.values()), need], there):
                    self.claims[name] = Claim(need)
            return [stage for stage in stages if wanted[stage.name] is None or stage.name in self.claims]

    def _look(self) -> Sequence[Node]:
        try:
            there = self.there()
        except UserError:
            if not self.answered:
                raise
            return []
        self.answered = True
        return there

    def release(self, stage: Stage) -> None:
        with self.lock:
            self.claims.pop(stage.name, None)

    def lost(self, stage: Stage, namespace: str) -> str | None:
        """Name of a node that went while the stage ran, and that had actors of it: verl waits for the answers of such a node,
        for ten minutes or for ever. Asked as often as one likes, it looks every few seconds. namespace: of its actors."""
        with self.lock:
            claim = self.claims.get(stage.name)
            if claim is None or time.monotonic() < claim.looked + WATCH_SECONDS:
                return None
            claim.looked = time.monotonic()
            try:
                names, used = {node.id: node.name for node in self.there()}, self.used(namespace)
            except Exception:  # the cluster is busy with the loss; Ray's errors for this have no common class
                return None
            found = next((name for mark, name in claim.used.items() if mark not in names), None)
            claim.used = {mark: name for mark, name in names.items() if mark in used or mark in claim.used}
            return found

    def _listed(self) -> str:
        with suppress(UserError):
            return lacks.listed(self.there()) or "no node"
        return "no answer"

    def wait(self, stages: Sequence[Stage], tell: Callable[[str], None], still: Callable[[], None]) -> Stage:
        """Waits until one of them can be claimed, and claims it. tell: hears why it waits; still: called meanwhile.

        Raises StageFailed when none could be for too long."""
        end, told = time.monotonic() + self.wait_seconds, False
        while True:
            if claimed := self.claim(stages):
                for stage in claimed[1:]:
                    self.release(stage)
                return claimed[0]
            if self.claims:  # of this run's own: they end some day
                end = time.monotonic() + self.wait_seconds
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

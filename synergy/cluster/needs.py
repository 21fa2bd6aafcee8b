"""What a stage needs of a cluster: nodes, and of each GPUs, processors and memory; its run-time setting ``cluster``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import KINDS, Stage
from synergy.stages.verl_keys import flatten

SETTING = "cluster"
KINDS_CHOICE = ("local", "ray")
SPREAD = ("sft", "rl")
"""Kinds that train on several nodes at once."""
VERL_CPUS = 3
"""That verl claims beside each GPU (ResourcePoolManager.max_colocate_count), and waits for without end."""
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
"""verl's key, 8 by default: each claims a CPU of any node, and so does what leads them, which verl waits for as long."""
PLACED = (*SPREAD, "sample", "evaluate")
"""Kinds that run on nodes of the cluster's choice; the others need no GPU and run beside the driver."""


@dataclass(frozen=True)
class Need:
    """nodes: how many; gpus, cpus, memory_gb: of each (0: none); gpu_memory_gb: of each GPU, as told (0: not known);
    other_cpus: beside those, of any node."""

    nodes: int
    gpus: int
    cpus: float = 1.0
    memory_gb: float = 0.0
    gpu_memory_gb: float = 0.0
    other_cpus: float = 0.0

    @property
    def all_cpus(self) -> float:
        return self.nodes * self.cpus + self.other_cpus

    def __str__(self) -> str:
        parts = [f"{self.gpus} GPU{'s' * (self.gpus != 1)}", *([f"{self.cpus:g} CPUs"] if self.cpus > 1 else [])]
        parts += [f"{self.memory_gb:g} GB of memory"] if self.memory_gb else []
        *most, last = parts
        told = f"{self.nodes} node{'s' * (self.nodes != 1)} with {', '.join(most)}{' and ' * bool(most)}{last}"
        return told + f", and {self.all_cpus:g} CPUs in all" * bool(self.other_cpus)


@dataclass(frozen=True)
class Node:
    """A node of the cluster, with what Ray may give away of it. memory_gb: 1e9 bytes; gpu_memory: bytes of its smallest GPU
    (0: not told; only ``probe`` asks)."""

    id: str
    name: str
    gpus: int
    cpus: float
    memory_gb: float
    head: bool = False
    gpu_memory: int = 0

    @classmethod
    def of(cls, state: Any) -> Node:
        """From Ray's NodeState."""
        there = state.resources_total or {}
        gpus, cpus, memory = (float(there.get(name, 0)) for name in ("GPU", "CPU", "memory"))
        return cls(
            state.node_id, f"{state.node_name} ({state.node_ip})", int(gpus), cpus, memory / 1e9, state.is_head_node
        )

    @classmethod
    def living(cls, states: Iterable[Any]) -> list[Node]:
        """Of all of Ray's NodeStates. Its own filter raises once a node is dead (ray 2.60, "data truncation")."""
        return [cls.of(state) for state in states if state.state == "ALIVE"]

    def holds(self, need: Need) -> bool:
        return self.gpus >= need.gpus and self.cpus >= need.cpus and self.memory_gb >= need.memory_gb

    def less(self, need: Need) -> Node:
        left = (self.gpus - need.gpus, self.cpus - need.cpus, self.memory_gb - need.memory_gb)
        return replace(self, gpus=left[0], cpus=left[1], memory_gb=left[2])


def of(stage: Stage) -> Need | None:
    """None for a stage that runs beside the driver."""
    found = stage.settings.get(SETTING)
    return None if found is None else Need(**found)


def place(cfg: Config, planned: Sequence[Stage]) -> list[Stage]:
    """The stages, with what each needs among its settings. Raises UserError for settings that can't be."""
    if cfg.cluster.kind not in KINDS_CHOICE:
        raise UserError(
            f"cluster.kind={cfg.cluster.kind!r} is one of {', '.join(KINDS_CHOICE)}; set cluster=local or cluster=ray"
        )
    if cfg.cluster.kind == "local":
        return list(planned)
    known = {*(stage.name for stage in planned), *KINDS}
    if strange := sorted(set(cfg.cluster.stages) - known):
        raise UserError(
            f"cluster.stages.{strange[0]} is neither a stage of this recipe nor a kind: {', '.join(sorted(known))}"
        )
    return [_placed(cfg, stage) for stage in planned]


def _placed(cfg: Config, stage: Stage) -> Stage:
    if stage.kind not in PLACED:
        return stage
    cluster, trainer = cfg.cluster, cfg.rl.verl.get("trainer", {})
    nodes = cluster.nodes or int(trainer.get("nnodes", 1))
    gpus = int(trainer.get("n_gpus_per_node", 8)) if cluster.gpus is None else cluster.gpus
    need = Need(
        nodes if stage.kind in SPREAD else 1, gpus, cluster.cpus, cluster.memory_gb or 0.0, cluster.gpu_memory_gb or 0.0
    )
    for name in (stage.kind, stage.name):
        need = _changed(need, cluster.stages.get(name) or {}, f"cluster.stages.{name}")
    if stage.kind == "rl":
        queue = 1.0 + int(flatten(cfg.rl.verl).get(UNITS) or 8)
        need = replace(need, cpus=max(need.cpus, float(VERL_CPUS * need.gpus)), other_cpus=queue)
    if need.nodes != 1 and stage.kind not in SPREAD:
        raise UserError(f"stage {stage.name} ({stage.kind}) runs on one node, not on {need.nodes}: set its nodes to 1")
    return replace(stage, settings={**stage.settings, SETTING: asdict(need)})


def _changed(need: Need, given: Mapping[str, Any], where: str) -> Need:
    names = [item.name for item in fields(Need) if item.name != "other_cpus"]
    if wrong := [name for name in given if name not in names]:
        raise UserError(f"{where}.{wrong[0]} is none of {', '.join(names)}")
    for name, value in given.items():
        whole, least = name in ("nodes", "gpus"), int(name == "nodes")
        if not least <= value < math.inf or (whole and value != int(value)):
            kind = f"a {'whole ' * whole}number from {least} on"
            raise UserError(f"{where}.{name}={value:g} can't be had: {name} is {kind}")
    changes: dict[str, Any] = dict(given)
    made = replace(need, **changes)
    return replace(made, nodes=int(made.nodes), gpus=int(made.gpus))

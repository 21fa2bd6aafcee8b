"""Memory of a cluster's GPUs, as its nodes tell it: filled in where the config has null, and whether the stages fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from synergy import strategies
from synergy.cluster import needs
from synergy.cluster.needs import Node
from synergy.compose import Task
from synergy.config import Config
from synergy.driver import externals
from synergy.errors import UserError
from synergy.stages import Stage, fit, lengths
from synergy.strategies import blocks

KEY = "cluster.gpu_memory_gb"


def words(tasks: Iterable[Task], there: Sequence[Node]) -> list[str]:
    """What to add to a command line so that its stages know the GPUs that they may come to; nothing where a value is given,
    or no node tells any. Raises UserError for a given one that is more than what is there."""
    kinds: dict[str, float] = {}
    silent = False
    for task in tasks:
        with task.telling():
            for stage in strategies.stages(task.cfg):
                need = needs.of(stage)
                if need is None or not need.gpus:
                    continue
                gb = _smallest(stage, need, there)
                if gb and not need.gpu_memory_gb and task.cfg.cluster.gpu_memory_gb is None:
                    kinds[stage.kind] = min(gb, kinds.get(stage.kind, gb))
                silent |= not gb
    if len(set(kinds.values())) == 1 and not silent:
        return [f"{KEY}={min(kinds.values()):g}"]
    return [f"++cluster.stages.{kind}.gpu_memory_gb={gb:g}" for kind, gb in sorted(kinds.items())]


def _smallest(stage: Stage, need: needs.Need, there: Sequence[Node]) -> float:
    """GB of the smallest GPU of the nodes that hold the stage, rounded down to a tenth; 0: none tells it."""
    nodes = [node for node in there if node.gpu_memory and node.holds(need)]
    if not nodes:
        return 0.0
    least = min(nodes, key=lambda node: node.gpu_memory)
    gb = least.gpu_memory // 10**8 / 10
    if need.gpu_memory_gb > math.ceil(gb):  # who rounds up means the same card
        raise UserError(
            f"{KEY}={need.gpu_memory_gb:g} is more than there is: stage {stage.name} may come to node {least.name}, whose GPUs "
            f"have {gb:g} GB. Lower it (of one kind of stage: cluster.stages.{stage.kind}.gpu_memory_gb), or leave it at null: "
            "submit reads it from the nodes"
        )
    return gb


def check(cfg: Config) -> None:
    """Raises UserError for a stage that can't fit, where the base model is at hand to tell, or whose lengths can't be."""
    base, given = externals.at_hand(cfg), blocks.given_models(cfg)
    for stage in strategies.stages(cfg):
        like = None if stage.inputs.get("model") in given else base  # those may be of another size
        lengths.check(stage, like)
        fit.check(stage, like)


def seen(nodes: Sequence[Node], cards: Mapping[str, Sequence[int]]) -> list[Node]:
    """The nodes with the memory of their smallest card. cards: bytes of each card of a node, by the node's id. A node that
    gives away more GPUs than it has cards tells none: they are parts of cards."""

    def smallest(node: Node) -> int:
        mine = cards.get(node.id, ())
        return min(mine, default=0) if len(mine) >= node.gpus > 0 else 0

    return [replace(node, gpu_memory=smallest(node)) for node in nodes]

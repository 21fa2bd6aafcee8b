"""Memory of a cluster's GPUs: what stages are told of the nodes' GPUs, and which values are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_cluster import node

from synergy import compose, stages, strategies
from synergy.cluster import gpu_memory, needs
from synergy.cluster.needs import Node
from synergy.errors import UserError

SMALL, LARGE = (
    replace(node(gpus, 64), name=name, gpu_memory=gb * 10**9) for gpus, name, gb in ((1, "s", 24), (8, "l", 80))
)
SILENT = replace(LARGE, gpu_memory=0)
FOUR, ONE = "cluster.gpus=4", "+cluster.stages.evaluate.gpus=1"


@pytest.mark.parametrize(
    ("words", "there", "made", "rl", "evaluate"),
    [
        ([FOUR], [LARGE, SMALL], ["cluster.gpu_memory_gb=80"], 80, 80),  # no stage fits on the small one
        (["cluster.gpus=1"], [LARGE, SMALL], ["cluster.gpu_memory_gb=24"], 24, 24),
        ([FOUR, ONE], [LARGE, SMALL],
         ["++cluster.stages.evaluate.gpu_memory_gb=24", "++cluster.stages.rl.gpu_memory_gb=80"], 80, 24),
        ([FOUR, ONE], [SILENT, SMALL], ["++cluster.stages.evaluate.gpu_memory_gb=24"], 0, 24),
        ([FOUR, "cluster.gpu_memory_gb=40"], [LARGE], [], 40, 40),
        ([FOUR, "cluster.gpu_memory_gb=0"], [LARGE], [], 0, 0),
        ([FOUR, "+cluster.stages.rl.gpu_memory_gb=40"], [LARGE], ["cluster.gpu_memory_gb=80"], 40, 80),
        (["cluster.gpus=0"], [LARGE], [], 0, 0),
        ([FOUR], [SILENT], [], 0, 0),
        ([FOUR], [], [], 0, 0),
    ],
)  # fmt: skip
def test_stages_hear_of_the_smallest_gpu_that_they_may_come_to(
    words: list[str], there: list[Node], made: list[str], rl: float, evaluate: float
) -> None:
    given = ["recipe=rl", "cluster=ray", *words]
    assert gpu_memory.words(compose.tasks(given), there) == made
    placed = strategies.stages(compose.tasks([*given, *made])[0].cfg)
    found = {stage.kind: need.gpu_memory_gb for stage in placed if (need := needs.of(stage))}
    assert found == {"rl": rl, "evaluate": evaluate}
    for one, other in zip(placed, strategies.stages(compose.tasks(given)[0].cfg), strict=True):
        assert stages.kind(one.kind).identity(one.settings) == stages.kind(one.kind).identity(other.settings)


def test_more_memory_than_a_gpu_has_is_refused_by_name() -> None:
    def made(gb: float) -> list[str]:
        words = ["recipe=rl", "cluster=ray", "cluster.gpus=1", f"+cluster.stages.rl.gpu_memory_gb={gb}"]
        return gpu_memory.words(compose.tasks(words), [replace(SMALL, gpu_memory=25_757_220_864)])

    assert made(26) == made(24) == ["cluster.gpu_memory_gb=25.7"], "who rounds up means the same card"
    with pytest.raises(
        UserError, match=r"gpu_memory_gb=27 is more .* stage rl may come to node s, whose GPUs have 25.7 GB"
    ):
        made(27)


def test_a_node_tells_its_smallest_card_unless_its_gpus_are_parts_of_cards() -> None:
    there = [replace(node(gpus), id=name) for gpus, name in ((2, "two"), (4, "parts"), (0, "head"), (1, "virtual"))]
    found = gpu_memory.seen(there, {"two": [80, 40], "parts": [80], "head": [80], "virtual": []})
    assert [one.gpu_memory for one in found] == [40, 0, 0, 0]

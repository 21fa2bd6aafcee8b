"""Equal runs of RL are equal: what each rollout draws, the order of rows, and arithmetic that does not depend on the batch.

That two whole runs, and one that was killed, end with the same weights is shown in test_real_crashes.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
pytestmark = pytest.mark.usefixtures("plugins_importable")

PLUGINS = Path(__file__).resolve().parents[1] / "launch" / "plugins"
CPU_ONLY = pytest.mark.skipif(torch.version.cuda is not None, reason="of vLLM's CPU build")


def test_each_rollout_has_a_seed_of_its_own_and_always_the_same() -> None:
    from verl_reproducible import request_seed

    cases = list(itertools.product((0, 1), (False, True), range(1, 4), range(8), range(8)))

    def seeds() -> list[int]:
        return [
            request_seed(run, {"step": step, "sample_index": row, "validate": val}, session)
            for run, val, step, row, session in cases
        ]

    assert seeds() == seeds() and len(set(seeds())) == len(cases)
    assert all(0 <= seed < 2**32 for seed in seeds())
    assert request_seed(0, {"step": 1, "sample_index": 0, "validate": False}, 0) == 3863027281, "of no process's own"


HOOKED = """
import pickle, verl
from ray import cloudpickle
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, _agent_loop_registry
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
method = cloudpickle.loads(cloudpickle.dumps(AgentLoopWorker._run_agent_loop))
print(*[f.__code__.co_filename.endswith("verl_reproducible.py") for f in (method, ReplayBuffer._materialize_batch)],
      method is AgentLoopWorker._run_agent_loop)
"""


def test_verls_hook_puts_both_in_place_and_ray_sends_them_by_name(warm_python: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(PLUGINS), "VERL_USE_EXTERNAL_MODULES": "verl_reproducible"}
    done = subprocess.run([warm_python, "-c", HOOKED], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr[-2000:]


def test_the_seed_reaches_the_rollout_and_leaves_the_other_parameters_alone() -> None:
    from verl_reproducible import request_seed, seed_rollouts

    asked: list[dict[str, Any]] = []

    class Worker:
        config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(seed=7)))

        async def _run_agent_loop(self, sampling_params: Any, trajectory: Any, **kwargs: Any) -> None:
            asked.append(sampling_params)

    seed_rollouts(SimpleNamespace(AgentLoopWorker=Worker))
    shared, trajectory = {"temperature": 1.0}, {"step": 2, "sample_index": 5, "validate": False, "rollout_n": 0}
    for session in (0, 1):
        asyncio.run(Worker()._run_agent_loop(shared, trajectory=trajectory, session_id=session, agent_name="a"))
    assert asked == [{"temperature": 1.0, "seed": request_seed(7, trajectory, session)} for session in (0, 1)]
    assert shared == {"temperature": 1.0}, "the dict is that of all rollouts"


def test_rows_come_in_the_order_of_the_data_set_however_they_were_finished() -> None:
    from transfer_queue import KVBatchMeta
    from verl_reproducible import sort_rows

    rows = {"f0-1_0_0": 3, "a7-2_10_0": 1, "a7-2_2_0": 1, "f0-1_1_0": 3, "f0-1_1_1": 3, "c3-9_0_0": 2}

    class Buffer:
        def _materialize_batch(self, partition_id: str, keys: list[str]) -> KVBatchMeta:
            return KVBatchMeta(partition_id=partition_id, keys=list(keys), tags=[{"of": key} for key in keys])

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, list[int]]:
        assert partition_id == "train"
        return {name: [rows[key] for key in keys] for name in select_fields}

    sort_rows(SimpleNamespace(ReplayBuffer=Buffer, tq=SimpleNamespace(kv_batch_get=get)))
    expected = ["a7-2_2_0", "a7-2_10_0", "c3-9_0_0", "f0-1_0_0", "f0-1_1_0", "f0-1_1_1"]
    for keys in itertools.permutations(rows):
        batch = Buffer()._materialize_batch("train", list(keys))
        assert batch.keys == expected and [tag["of"] for tag in batch.tags] == expected


@CPU_ONLY
def test_a_row_of_a_product_does_not_depend_on_how_many_others_there_are() -> None:
    """The shapes of the tiny model: MKL sums 1 to 3 rows otherwise, which is why there is whole_rows."""
    from synergy_verl_cpu import whole_rows

    torch.manual_seed(0)
    stock = torch.nn.functional.linear
    layer, differs = SimpleNamespace(cpu_linear=stock), 0
    for wide, out in ((128, 256), (128, 768), (384, 128), (128, 480), (64, 192), (256, 128)):
        weight, x = torch.randn(out, wide), torch.randn(300, wide)
        whole = stock(x, weight)
        for rows in range(1, 64):
            part = whole_rows(layer, x[7 : 7 + rows], weight)
            assert torch.equal(part, whole[7 : 7 + rows]), (wide, out, rows)
            differs += not torch.equal(stock(x[7 : 7 + rows], weight), whole[7 : 7 + rows])
        assert torch.equal(whole_rows(layer, x[:6].view(2, 3, wide), weight), whole[:6].view(2, 3, out))
    assert differs, "MKL needs it no more: drop whole_rows"

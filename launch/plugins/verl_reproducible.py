"""Equal runs of verl see equal rollouts in equal order: VERL_USE_EXTERNAL_MODULES=…,verl_reproducible.

Two runs of verl 0.9.1 with the same seeds differ from the first step on, for two reasons, and neither has an option:

* All requests draw from vLLM's one generator, as they happen to share a batch. verl's own rollout.full_determinism gives
  every request the same seed, so that a question's n rollouts would be one and the same. Here each rollout has a seed of
  its own, by rollout.seed, step, row of the data set and number in its group: what it draws does not depend on what else is
  in the batch, nor on what was drawn before a restart.
* Rows reach the trainer in the order in which they were finished, under random names, so that other rows share a mini-batch.
  Here they are put in the order of the data set.

What remains is arithmetic: a row's logits may depend on its batch. On a CPU the vLLM worker has none of that (see
`synergy_verl_cpu`); on GPUs it takes VLLM_BATCH_INVARIANT=1, and actor.fsdp_config.full_determinism in the trainer.
With algorithm.filter_groups it also depends on the clock which groups are in time for a batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from after_import import after_import


def request_seed(run: int, trajectory: Mapping[str, Any], session: int) -> int:
    """Seed of one rollout, of 32 bits: torch's generator on a CPU takes no more. trajectory: verl's step, sample_index,
    validate."""
    split = "val" if trajectory["validate"] else "train"
    text = f"{run}/{split}/{int(trajectory['step'])}/{int(trajectory['sample_index'])}/{session}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def seed_rollouts(module: Any) -> None:
    """Has verl's agent loop workers ask for each rollout with its own seed. module: verl.experimental.agent_loop.agent_loop.

    wraps: under its name Ray sends the method to its workers by reference; else by value, with a copy of verl's registry.
    """
    worker = module.AgentLoopWorker
    stock = worker._run_agent_loop

    @functools.wraps(stock)
    async def _run_agent_loop(self: Any, sampling_params: Any, trajectory: Any, **kwargs: Any) -> Any:
        run = int(self.config.actor_rollout_ref.rollout.seed)
        seed = request_seed(run, trajectory, int(kwargs.get("session_id", trajectory["rollout_n"])))
        return await stock(self, {**sampling_params, "seed": seed}, trajectory, **kwargs)

    worker._run_agent_loop = _run_agent_loop


def sort_rows(module: Any) -> None:
    """Has verl's replay buffers, and what descends from them, give batches in order. module: …ppo.v1.replay_buffer."""
    buffer = module.ReplayBuffer
    stock = buffer._materialize_batch

    @functools.wraps(stock)
    def _materialize_batch(self: Any, partition_id: str, *args: Any, **kwargs: Any) -> Any:
        batch = stock(self, partition_id, *args, **kwargs)
        told = module.tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["index"])
        rows = [int(getattr(row, "data", row)) for row in told["index"]]
        order = sorted(range(len(rows)), key=lambda i: (rows[i], *map(int, batch.keys[i].rsplit("_", 2)[1:])))
        batch.keys[:], batch.tags[:] = [batch.keys[i] for i in order], [batch.tags[i] for i in order]
        return batch

    buffer._materialize_batch = _materialize_batch


after_import("verl.experimental.agent_loop.agent_loop", seed_rollouts)
after_import("verl.trainer.ppo.v1.replay_buffer", sort_rows)

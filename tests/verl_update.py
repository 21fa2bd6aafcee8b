"""verl's own actor worker on a CPU, without Ray: what one rank of it does with given rows. A program, started by
test_within_update.py once per rank: ``verl_update.py IN OUT``, RANK and WORLD_SIZE in the environment.

IN: cases by name, each with ``overrides`` (verl's, as the stage has them), ``rows`` (fields as in TransferQueue, in the order
of the mini-batches) and ``mini`` (rows of a mini-batch). OUT: of each case verl's metrics and the weights before and after.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed
import verl_config
from tensordict import NonTensorStack, TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss


def described(part: Any, model: Any) -> TrainingWorkerConfig:
    """Of the actor or the reference model, as verl's own init_model puts it together."""
    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=model,
        engine_config=part.engine,
        optimizer_config=part.optim,
        checkpoint_config=part.checkpoint,
    )


def worker(overrides: list[str]) -> TrainingWorker:
    """As verl.workers.engine_workers.ActorRolloutRefWorker.init_model makes its actor."""
    config = verl_config.resolved(overrides).actor_rollout_ref
    model, actor = omega_conf_to_dataclass(config.model), omega_conf_to_dataclass(config.actor)
    actor.model_config = model
    told = described(actor, model)
    told.engine_config.use_dynamic_bsz = config.actor.use_dynamic_bsz
    told.engine_config.max_token_len_per_gpu = config.actor.ppo_max_token_len_per_gpu
    told.engine_config.use_remove_padding = model.get("use_remove_padding", False)
    made = TrainingWorker(config=told)
    made.reset()
    made.set_loss_fn(partial(ppo_loss, config=actor))
    return made


def nested(rows: list[dict[str, Any]]) -> TensorDict:
    def field(name: str) -> Any:
        values = [row[name] for row in rows]
        if isinstance(values[0], torch.Tensor):
            return torch.nested.as_nested_tensor(values, layout=torch.jagged)
        return NonTensorStack(*values)

    return TensorDict({name: field(name) for name in rows[0]}, batch_size=[len(rows)])


def weights(made: TrainingWorker) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in made.engine.module.named_parameters():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        found[name] = full.detach().clone()
    return found


def update(case: dict[str, Any]) -> dict[str, Any]:
    """One step's updates; of each mini-batch this rank has every so-many-th row, as verl deals them out."""
    made, rank, ranks = worker(case["overrides"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows, mini = case["rows"], case["mini"]
    batch = nested([row for at in range(0, len(rows), mini) for row in rows[at : at + mini][rank::ranks]])
    # As verl.trainer.ppo.v1.trainer_base.PPOTrainer._update_actor.
    tu.assign_non_tensor(
        batch, global_batch_size=mini, mini_batch_size=mini, epochs=1, seed=42, temperature=1.0,
        dataloader_kwargs={"shuffle": False}, calculate_entropy=False,
    )  # fmt: skip
    before = weights(made)
    told = tu.get(made.train_mini_batch(batch), "metrics")
    kept = ("loss", "pg_loss", "kl_loss", "grad_norm", "sft_nll", "sft_tokens", "lr")
    metrics = {
        name.removeprefix("actor/"): value for name, value in told.items() if name.removeprefix("actor/") in kept
    }
    return {"metrics": metrics, "before": before, "after": weights(made)}


def main() -> None:
    cases = torch.load(sys.argv[1], weights_only=False)
    done = {name: update(case) for name, case in cases.items()}
    if int(os.environ["RANK"]) == 0:
        torch.save(done, sys.argv[2])
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Where verl's own engine puts a reference model on a CPU, without Ray. A program, started by test_reference.py:
``verl_offloads.py IN OUT``.

IN: verl's overrides of an RL stage whose reference model is to stay, and of one whose is to go. OUT: of the first without the
plug-in, of the same with it, and of the second with it: FSDP2's offload policies by name, whether the model is only read, and
the sum of its weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import verl_config
from omegaconf import open_dict
from torch.distributed.fsdp import FSDPModule
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import TrainingWorker
from verl_update import described


def offloads(overrides: list[str]) -> tuple[list[str], bool, float]:
    """As verl.workers.engine_workers.ActorRolloutRefWorker.init_model makes its reference model."""
    told = verl_config.resolved(overrides).actor_rollout_ref
    with open_dict(told.ref):
        for name in [key for key in told.ref if key.startswith("log_prob_")]:
            told.ref.pop(name)
        told.ref.ppo_mini_batch_size = told.actor.ppo_mini_batch_size
        told.ref.use_dynamic_bsz, told.ref.ppo_max_token_len_per_gpu = True, 16384
    made = TrainingWorker(config=described(omega_conf_to_dataclass(told.ref), omega_conf_to_dataclass(told.model)))
    made.reset()
    module = made.engine.module
    units = [unit._get_fsdp_state()._fsdp_param_group for unit in module.modules() if isinstance(unit, FSDPModule)]
    policies = {type(unit.offload_policy).__name__ for unit in units if unit}
    weights = sum(value.full_tensor().double().sum().item() for value in module.parameters())
    return sorted(policies), made.engine.engine_config.forward_only, weights


def main() -> None:
    stays, goes = json.loads(Path(sys.argv[1]).read_text())
    found = [offloads(stays)]
    import verl_reference  # noqa: F401 - changes verl from here on

    found += [offloads(stays), offloads(goes)]
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

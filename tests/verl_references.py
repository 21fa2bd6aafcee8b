"""Reference models by verl's own engine on a CPU, without Ray. A program, started by test_reference.py:
``verl_references.py IN OUT``, with the plug-ins that are to be looked at not among VERL_USE_EXTERNAL_MODULES.

IN: ``stock`` and ``changed``, lists of verl's overrides of an RL stage. OUT: of each reference model, first of stock ones
without plug-ins, then of changed ones with them: FSDP2's offload policies by name (policies), whether the model is only read
(read_only), the names of its weights' dtypes (dtypes), their sum (sum), and the logits of a picture and a text (logits).
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import verl_config
from omegaconf import open_dict
from torch.distributed.fsdp import FSDPModule
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import TrainingWorker
from verl_update import described

PLUG_INS = ("verl_reference", "verl_positions")
TOKENS = 300
"""At the last of them a frequency of 8 bits is far off."""


def reference(overrides: list[str]) -> TrainingWorker:
    """As verl.workers.engine_workers.ActorRolloutRefWorker.init_model makes its reference model."""
    told = verl_config.resolved(overrides).actor_rollout_ref
    with open_dict(told.ref):
        for name in [key for key in told.ref if key.startswith("log_prob_")]:
            told.ref.pop(name)
        told.ref.ppo_mini_batch_size = told.actor.ppo_mini_batch_size
        told.ref.use_dynamic_bsz, told.ref.ppo_max_token_len_per_gpu = True, 16384
    made = TrainingWorker(config=described(omega_conf_to_dataclass(told.ref), omega_conf_to_dataclass(told.model)))
    made.reset()
    return made


def look(overrides: list[str]) -> dict[str, Any]:
    made = reference(overrides)
    module = made.engine.module
    units = [unit._get_fsdp_state()._fsdp_param_group for unit in module.modules() if isinstance(unit, FSDPModule)]
    weights = [value.full_tensor() for value in module.parameters()]
    ids = torch.arange(TOKENS)[None] % 40
    ids[:, :4] = module.config.image_token_id
    given = {
        "input_ids": ids,
        "position_ids": torch.arange(TOKENS).expand(4, 1, TOKENS),
        "pixel_values": torch.randn(16, 1176, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    with torch.no_grad():
        logits = module(**given, use_cache=False).logits
    return {
        "policies": sorted({type(unit.offload_policy).__name__ for unit in units if unit}),
        "read_only": made.engine.engine_config.forward_only,
        "dtypes": sorted({str(value.dtype) for value in weights}),
        "sum": sum(value.double().sum().item() for value in weights),
        "logits": logits.float().flatten().tolist(),
    }


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    found = {"stock": [look(overrides) for overrides in given["stock"]]}
    for name in PLUG_INS:  # change verl from here on
        import_module(name)
    found["changed"] = [look(overrides) for overrides in given["changed"]]
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

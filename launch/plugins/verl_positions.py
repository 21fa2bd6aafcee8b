"""Rotary frequencies stay float32 where weights are bfloat16: VERL_USE_EXTERNAL_MODULES=…,verl_positions.

verl 0.9.1 turns a whole model into its `model_dtype` (workers/engine/fsdp/transformer_impl.py, `module.to(torch_dtype)`), the
frequencies by which it knows positions, too: rounded to 8 bits they put tokens in wrong places, the farther the worse (a policy
of 7B in bfloat16, and vLLM with the same weights: Pearson 0.93 between their probabilities, benchmarks/results/h200.md).
transformers keeps them in float32. Here verl does, too; then a model in bfloat16 computes what one in float32 does, whose
weights FSDP casts.
"""

from __future__ import annotations

from typing import Any

import torch
from after_import import after_import

MODULE = "verl.workers.engine.fsdp.transformer_impl"


def keep_float32(engines: Any) -> None:
    """Has verl's FSDP engine give a model its float32 buffers back after it turned them."""
    stock = engines.FSDPEngine._build_module

    def build(self: Any) -> Any:
        kept: dict[str, torch.Tensor] = {}
        patch = engines.apply_monkey_patch

        def before_it_turns(model: torch.nn.Module, **how: Any) -> Any:
            kept.update({name: value for name, value in model.named_buffers() if value.dtype == torch.float32})
            return patch(model=model, **how)

        engines.apply_monkey_patch = before_it_turns
        try:
            module = stock(self)
        finally:
            engines.apply_monkey_patch = patch
        for name, value in kept.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = value
        return module

    engines.FSDPEngine._build_module = build


after_import(MODULE, keep_float32)

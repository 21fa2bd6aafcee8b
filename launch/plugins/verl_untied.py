"""Models without tied embeddings over several processes: VERL_USE_EXTERNAL_MODULES=…,verl_untied.

Two things of verl 0.9.1 do not work for them (Qwen2.5-VL 7B; the 3B ties its embeddings), and are mended here:

* All ranks but the first start from empty weights by accelerate's init_empty_weights. transformers 5 marks a parameter as
  loaded by an attribute, `_is_hf_initialized`, and accelerate hands a parameter's attributes on to its constructor, which knows
  no such word: TypeError. Here the mark is put aside meanwhile. Holds for accelerate 1.11 (LLaMA-Factory 0.9.5 takes no newer
  one) and 1.12, with transformers 5.5.
* FSDP2 shards the output layer by itself, and gathers it when it is called. verl's fused kernels never call it, they take its
  weight, of which each rank has a part: RuntimeError, "mixed torch.Tensor and DTensor". Here it belongs to the whole model, as
  tied embeddings do, and so is gathered for the model's forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from after_import import after_import

MARK = "_is_hf_initialized"


def take_marked(accelerate: Any) -> None:
    """Has accelerate's init_empty_weights take parameters that bear the mark."""
    stock = accelerate.init_empty_weights

    @contextmanager
    def init_empty_weights(include_buffers: bool | None = None) -> Iterator[None]:
        with stock(include_buffers=include_buffers):
            register = torch.nn.Module.register_parameter

            def unmarked(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
                mark = None if param is None else param.__dict__.pop(MARK, None)
                register(module, name, param)
                if mark is not None:
                    setattr(module._parameters[name], MARK, mark)

            torch.nn.Module.register_parameter = unmarked  # type: ignore[method-assign]
            try:
                yield
            finally:
                torch.nn.Module.register_parameter = register  # type: ignore[method-assign]

    accelerate.init_empty_weights = init_empty_weights


def keep_head(fsdp_utils: Any) -> None:
    """Has verl's apply_fsdp2 leave the output layer to the whole model."""
    stock = fsdp_utils._select_fsdp2_wrap_targets

    def targets(model: torch.nn.Module, layers: list[str]) -> list[torch.nn.Module]:
        return [module for module in stock(model, layers) if module is not getattr(model, "lm_head", None)]

    fsdp_utils._select_fsdp2_wrap_targets = targets


after_import("accelerate", take_marked)
after_import("verl.utils.fsdp_utils", keep_head)

"""Models without tied embeddings over several processes: VERL_USE_EXTERNAL_MODULES=…,verl_empty_weights.

verl gives all ranks but the first of such a model (Qwen2.5-VL 7B; the 3B ties its embeddings) empty weights by accelerate's
init_empty_weights. transformers 5 marks a parameter as loaded by an attribute, `_is_hf_initialized`, and accelerate hands a
parameter's attributes on to its constructor, which knows no such word: TypeError. Here the mark is put aside meanwhile.
Holds for accelerate 1.11 (LLaMA-Factory 0.9.5 takes no newer one) and 1.12, with transformers 5.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from after_import import after_import

MARK = "_is_hf_initialized"


def change(accelerate: Any) -> None:
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


after_import("accelerate", change)

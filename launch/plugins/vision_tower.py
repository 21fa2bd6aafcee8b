"""Qwen2.5-VL's vision tower without work in vain, from the import of this module on: VERL_USE_EXTERNAL_MODULES=…,vision_tower.

* A frozen tower computes no gradients. Why: gradient checkpointing has transformers hook every module's input embeddings so
  that their output requires a gradient, the tower's patches too; its whole backward pass, and its forward pass a second time,
  are computed for nothing. How: a tower without a trained parameter runs under no_grad.
* On a GPU without flash-attn, all windows of an image in one call. Why: transformers hands each to SDPA by itself, in Python,
  16 to a picture of 448 x 448 in 28 of 32 layers, while the GPU waits (benchmarks/results/h200.md). How: transformers' own
  extension point, an attention function whose name says flash, and so is given all windows with their bounds;
  torch.nn.attention.varlen has the kernel. Not needed where attn_implementation is flash_attention_2.

Holds for: transformers 5.5 (modeling_utils.py: gradient_checkpointing_enable; models/qwen2_5_vl/
modeling_qwen2_5_vl.py: Qwen2_5_VLVisionAttention.forward), torch 2.10 and newer.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
from after_import import after_import

NAME = "windows_by_torch_flash"
MODULE = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each window. query, key, value: (1, heads, patches, head size). cu_seq_lens_q: where windows begin, and
    the last one's end. Gives (1, patches, heads, head size)."""
    parts = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return _one_by_one(parts, cu_seq_lens_q, scaling), None
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = cu_seq_lens_q.to(torch.int32), int(max_length_q)
    made = varlen_attn(*(part.contiguous() for part in parts), bounds, bounds, longest, longest, scale=scaling)
    return made.unsqueeze(0), None


def _one_by_one(parts: list[torch.Tensor], bounds: torch.Tensor, scaling: float) -> torch.Tensor:
    """What transformers does: the kernel takes half precision on a GPU alone."""
    windows = zip(*(part.transpose(0, 1)[None].split(bounds.diff().tolist(), dim=2) for part in parts), strict=True)
    made = [torch.nn.functional.scaled_dot_product_attention(*window, scale=scaling) for window in windows]
    return torch.cat(made, dim=2).transpose(1, 2)


def use_attention(tower: torch.nn.Module) -> None:
    """Has a tower's blocks take `attention`. They get a config of their own: whoever builds a second model from the tower's, as
    verl does its reference, is not to find a name in it that transformers would look up on its hub."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    told: Any = copy.copy(tower.config)
    told._attn_implementation = NAME
    for block in cast(Any, tower).blocks:
        block.attn.config = told


def change(modeling: Any) -> None:
    """Changes the tower's class: how it is made, and how it is called."""
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel
    make, call = tower.__init__, tower.forward

    @functools.wraps(make)
    def init(self: Any, config: Any, *given: Any, **named: Any) -> None:
        make(self, config, *given, **named)
        if self.config._attn_implementation == "sdpa" and torch.cuda.is_available():
            use_attention(self)

    @functools.wraps(call)
    def forward(self: Any, *given: Any, **named: Any) -> Any:
        trained = any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return call(self, *given, **named)

    tower.__init__, tower.forward = init, forward


after_import(MODULE, change)

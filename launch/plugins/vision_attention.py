"""All windows of an image in one call of PyTorch's own flash attention, for Qwen2.5-VL's vision tower on a GPU.

Why: without the package flash-attn transformers hands each window to SDPA by itself, in Python: 16 to a picture of 448 x 448
in 28 of 32 layers, 17,000 calls for a micro-batch of 38 rows (benchmarks/results/h200.md), while the GPU waits. How:
transformers' own extension point, an attention function of another name; that its name says flash has the tower pass all
windows at once, with their bounds. torch.nn.attention.varlen has the kernel, its backward pass too.

Holds for: transformers 5.5 (models/qwen2_5_vl/modeling_qwen2_5_vl.py: Qwen2_5_VLVisionAttention.forward), torch 2.10 and newer.
Not needed where `attn_implementation: flash_attention_2` is set.
"""

from __future__ import annotations

import copy
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


def use(tower: torch.nn.Module) -> None:
    """Has a tower's blocks take `attention`. They get a config of their own: whoever builds a second model from the tower's, as
    verl does its reference, is not to find a name in it that transformers would look up on its hub."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    told: Any = copy.copy(tower.config)
    told._attn_implementation = NAME
    for block in cast(Any, tower).blocks:
        block.attn.config = told


def change(modeling: Any) -> None:
    """Has towers that would take SDPA on a GPU take `attention`."""
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel
    stock = tower.__init__

    def init(self: Any, config: Any, *given: Any, **named: Any) -> None:
        stock(self, config, *given, **named)
        if self.config._attn_implementation == "sdpa" and torch.cuda.is_available():
            use(self)

    tower.__init__ = init


def install() -> None:
    """At once, or as soon as the model's module is imported."""
    after_import(MODULE, change)


install()

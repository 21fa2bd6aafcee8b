"""A vision tower's windows in one call: the same as transformers' one by one. The kernel itself runs on GPUs only, where
`benchmarks/gpu/update_parts.py` compares them."""

from __future__ import annotations

import sys

import pytest

from synergy import lab, paths

pytestmark = pytest.mark.slow
sys.path.insert(0, str(paths.ROOT / "launch" / "plugins"))


def test_the_towers_features_stay_as_they_are() -> None:
    import torch
    import vision_attention
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("cpu"):
        tower = Qwen2_5_VLForConditionalGeneration.from_pretrained(lab.BASE, dtype="float32").model.visual
    rows, columns = 8, 12
    grid = torch.tensor([[1, rows, columns], [1, columns, rows]])
    size = tower.config.patch_size**2 * tower.config.in_channels * tower.config.temporal_patch_size
    pixels = torch.randn(2 * rows * columns, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock = tower(pixels, grid_thw=grid).pooler_output
        vision_attention.use(tower)
        ours = tower(pixels, grid_thw=grid).pooler_output
    assert torch.equal(stock, ours) and stock.abs().max() > 0
    assert tower.config._attn_implementation == "sdpa"
    assert {block.attn.config._attn_implementation for block in tower.blocks} == {vision_attention.NAME}


def test_the_reason_is_still_there() -> None:
    """transformers hands windows over one by one unless the implementation is called flash; gone, the plug-in can go."""
    import inspect

    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    text = inspect.getsource(modeling.Qwen2_5_VLVisionAttention.forward)
    assert "is_flash_attention_requested(self.config)" in text and "torch.split(" in text

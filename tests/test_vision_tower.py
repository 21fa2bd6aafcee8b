"""A vision tower without work in vain gives the same features and gradients as transformers' own. The attention kernel runs on
GPUs only, where `benchmarks/gpu/update_parts.py` compares it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from synergy import lab, paths

pytestmark = pytest.mark.slow
sys.path.insert(0, str(paths.ROOT / "launch" / "plugins"))


@pytest.fixture(scope="module")
def model() -> Any:
    import vision_tower  # noqa: F401 - changes the class
    from transformers import Qwen2_5_VLForConditionalGeneration
    from verl_freeze_vision import freeze_vision

    made = Qwen2_5_VLForConditionalGeneration.from_pretrained(lab.BASE, dtype="float32")
    assert freeze_vision(made)
    made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return made.train()


def picture(model: Any) -> dict[str, Any]:
    """Two pictures of several windows."""
    import torch

    rows, columns, vision = 8, 12, model.config.vision_config
    size = vision.patch_size**2 * vision.in_channels * vision.temporal_patch_size
    pixels = torch.randn(2 * rows * columns, size, generator=torch.Generator().manual_seed(0))
    return {"hidden_states": pixels, "grid_thw": torch.tensor([[1, rows, columns], [1, columns, rows]])}


def gradients(model: Any) -> dict[str, Any]:
    """Of a loss over a row with both pictures."""
    import torch

    given, ids = picture(model), []
    for _, rows, columns in given["grid_thw"].tolist():
        pads = [model.config.image_token_id] * (rows * columns // 4)
        ids += [model.config.vision_start_token_id, *pads, model.config.vision_end_token_id, 5, 6, 7]
    row = torch.tensor([ids])
    kinds = (row == model.config.image_token_id).int()
    out = model(
        input_ids=row,
        labels=row,
        mm_token_type_ids=kinds,
        pixel_values=given["hidden_states"],
        image_grid_thw=given["grid_thw"],
    )
    out.loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def test_a_frozen_tower_computes_no_gradients_and_the_rest_has_the_same(model: Any) -> None:
    import torch

    tower = model.model.visual
    kind = type(tower)
    ours, stock = kind.forward, kind.forward.__wrapped__
    assert not tower(**picture(model)).pooler_output.requires_grad
    found = gradients(model)
    kind.forward = stock
    try:
        needless = tower(**picture(model)).pooler_output.requires_grad
        before = gradients(model)
    finally:
        kind.forward = ours
    assert needless, "transformers computes no gradients for a frozen tower any more: this part of the plug-in can go"
    assert before.keys() == found.keys() and all(torch.equal(before[name], found[name]) for name in found)


def test_a_trained_tower_has_its_gradients(model: Any) -> None:
    merger = next(model.model.visual.merger.parameters())
    merger.requires_grad_(True)
    try:
        assert any("visual.merger" in name for name in gradients(model))
    finally:
        merger.requires_grad_(False)


def test_windows_in_one_call_are_those_one_by_one(model: Any) -> None:
    import inspect

    import torch
    import vision_tower
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    text = inspect.getsource(modeling.Qwen2_5_VLVisionAttention.forward)
    assert "is_flash_attention_requested(self.config)" in text and "torch.split(" in text, "then it can go"
    tower = model.model.visual
    stock = tower(**picture(model)).pooler_output
    vision_tower.use_attention(tower)
    ours = tower(**picture(model)).pooler_output
    assert torch.equal(stock, ours) and stock.abs().max() > 0
    assert tower.config._attn_implementation == "sdpa"
    assert {block.attn.config._attn_implementation for block in tower.blocks} == {vision_tower.NAME}

"""RL on questions without an image: VERL_USE_EXTERNAL_MODULES=…,verl_text_rows.

verl 0.9.1 has the vision tower compute a blank patch for a micro-batch without images, so that all ranks gather the same
weights, and takes what the tower gives for a tensor (models/transformers/qwen2_vl.py, _get_input_embeds). transformers 5 gives
an object that holds it: AttributeError at the first such micro-batch, in the middle of a run. For images verl takes the tensor
out of it; here it does for the blank patch, too.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from after_import import after_import

MODULE = "verl.models.transformers.qwen2_vl"


def take_out(qwen2_vl: Any) -> None:
    """Has verl see a tower that gives tensors, where there is no image."""
    stock = qwen2_vl._get_input_embeds

    def unpacked(model: Any) -> Any:
        """What verl asks of the model, its tower's tensor taken out."""

        def visual(*given: Any, **named: Any) -> Any:
            return qwen2_vl.unpack_visual_output(model.visual(*given, **named))[0]

        return SimpleNamespace(visual=visual, get_input_embeddings=model.get_input_embeddings, config=model.config)

    def embeds(
        model: Any,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_values_videos: Any = None,
        *grids: Any,
        **named: Any,
    ) -> Any:
        blank = pixel_values is None and pixel_values_videos is None
        seen = unpacked(model) if blank else model
        return stock(seen, input_ids, attention_mask, pixel_values, pixel_values_videos, *grids, **named)

    qwen2_vl._get_input_embeds = embeds


after_import(MODULE, take_out)

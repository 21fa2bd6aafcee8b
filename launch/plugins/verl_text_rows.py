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

    def embeds(
        model: Any, input_ids: Any, mask: Any = None, pixels: Any = None, frames: Any = None, *grids: Any, **named: Any
    ) -> Any:
        if pixels is None and frames is None:
            tower = model.visual

            def visual(*given: Any, **how: Any) -> Any:
                return qwen2_vl.unpack_visual_output(tower(*given, **how))[0]

            words = model.get_input_embeddings
            model = SimpleNamespace(visual=visual, get_input_embeddings=words, config=model.config)
        return stock(model, input_ids, mask, pixels, frames, *grids, **named)

    qwen2_vl._get_input_embeds = embeds


after_import(MODULE, take_out)

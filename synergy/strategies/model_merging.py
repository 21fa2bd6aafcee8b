"""model_merging: weights of the SFT and the RL model, averaged (paper, model merging section; Table 6).

Both parents are the models of the recipes ``sft`` and ``rl``, shared with them. Each ratio is one merged model; ratios 0 and 1
are the parents themselves, evaluated without merging.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage, merge
from synergy.strategies import base, blocks, rl, sft


@dataclass(frozen=True)
class Knobs:
    method: str = "linear"
    ratios: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    reported: float = 0.25
    parameters: dict[str, Any] = field(default_factory=dict)


def model(ratio: float) -> str:
    """Name of the stage that makes the model with this share of SFT."""
    return "rl" if ratio == 0 else "sft" if ratio == 1 else f"merge-{ratio:g}"


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    ratios = sorted(set(knobs.ratios))
    wrong = [ratio for ratio in ratios if not 0 <= ratio <= 1]
    if wrong or not ratios:
        raise UserError(f"recipe.ratios={knobs.ratios}: shares of the SFT model, each from 0 to 1")
    if len({model(ratio) for ratio in ratios}) < len(ratios):
        raise UserError(f"recipe.ratios={knobs.ratios}: two of them are equal to six digits")
    if knobs.reported not in ratios:
        raise UserError(f"recipe.reported={knobs.reported} is not one of recipe.ratios={ratios}")
    shared = [*base.stages(cfg, base.Knobs()), *sft.stages(cfg, sft.Knobs()), *rl.stages(cfg, rl.Knobs())]
    planned = {stage.name: stage for stage in shared if stage.name not in ("eval-sft", "eval-rl")}
    for ratio in ratios:
        if 0 < ratio < 1:
            made = blocks.merge(cfg, model(ratio), "sft", "rl", ratio, knobs.method, dict(knobs.parameters))
            merge.check(made, {})
            planned[made.name] = made
    ratios.sort(key=lambda ratio: ratio == knobs.reported)  # what is evaluated last is the recipe's own result
    return [*planned.values(), *(blocks.evaluate(cfg, model(ratio)) for ratio in ratios)]

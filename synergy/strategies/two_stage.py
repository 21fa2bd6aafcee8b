"""two_stage: GRPO from the long-CoT SFT model, with more room to think (paper, two-stage section; Table 6)."""

from __future__ import annotations

from dataclasses import dataclass

from synergy.config import Config
from synergy.stages import Stage
from synergy.strategies import blocks, sft


@dataclass(frozen=True)
class Knobs:
    pass


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    return [
        *sft.stages(cfg, sft.Knobs()),
        blocks.round_data(cfg, "order", "data"),
        blocks.rl(cfg, "two_stage", "sft", "order", "GRPO from the SFT model", cfg.lengths.rl_after_sft),
        blocks.evaluate(cfg, "two_stage"),
    ]

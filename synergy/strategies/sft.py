"""sft: long-CoT SFT of the base model (paper, section on long-CoT SFT; Table 6, row SFT)."""

from __future__ import annotations

from dataclasses import dataclass

from synergy.config import Config
from synergy.stages import Stage
from synergy.strategies import base, blocks


@dataclass(frozen=True)
class Knobs:
    pass


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    return [
        *base.stages(cfg, base.Knobs()),
        blocks.train_data(cfg),
        blocks.sft(cfg, "sft", blocks.BASE, "data", "long traces of all training questions", choose=cfg.sft.choose),
        blocks.evaluate(cfg, "sft"),
    ]

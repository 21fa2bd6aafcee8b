"""rl: GRPO from the base model (paper, section on RL; Table 6, row RL)."""

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
        blocks.round_data(cfg, "order", "data"),
        blocks.rl(cfg, "rl", blocks.BASE, "order", "GRPO on all training questions", cfg.lengths.rl),
        blocks.evaluate(cfg, "rl"),
    ]

"""rl: GRPO from the base model (paper, section on RL; Table 6, row RL)."""

from __future__ import annotations

from dataclasses import dataclass

from synergy.config import Config
from synergy.stages import Stage
from synergy.strategies import base, blocks


@dataclass(frozen=True)
class Knobs:
    drop_easiest: bool = False


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    planned = [*base.stages(cfg, base.Knobs()), blocks.train_data(cfg)]
    if knobs.drop_easiest:
        note = "which questions the base model always solves"
        planned.append(blocks.sample(cfg, "passes", blocks.BASE, "data", "data", note))
    passes = ["passes"] if knobs.drop_easiest else []
    return [
        *planned,
        blocks.round_data(cfg, "order", "data", passes, drop_easiest=knobs.drop_easiest),
        blocks.rl(cfg, "rl", blocks.BASE, "order", "GRPO on all training questions", cfg.lengths.rl),
        blocks.evaluate(cfg, "rl"),
    ]

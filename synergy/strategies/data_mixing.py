"""data_mixing: SFT on what the RL model gets right, and long traces for what it never does (paper, data mixing; Table 6).

The RL model is that of the recipe ``rl``, shared with it. It answers every training question ``sample.n`` times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synergy.config import Config
from synergy.data import select
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import blocks, rl


@dataclass(frozen=True)
class Knobs:
    epochs: float = 2.0
    select: list[Any] = field(default_factory=lambda: list(select.DATA_MIXING))


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if knobs.epochs <= 0:
        raise UserError(f"recipe.epochs={knobs.epochs}: SFT needs more than no epoch")
    blocks.choosing(knobs.select)
    other: dict[str, Any] = {} if knobs.select == select.DATA_MIXING else {"select": knobs.select}
    note = "right responses, and traces of zero-pass questions"
    return [
        *(stage for stage in rl.stages(cfg, rl.Knobs()) if stage.name != "eval-rl"),
        blocks.sample(cfg, "responses", "rl", "data", "data", "the RL model answers every question"),
        blocks.mixture(cfg, "mixture", "data", "responses", note, **other),
        blocks.sft(
            cfg, "data_mixing", blocks.BASE, "mixture", note, choose=cfg.sft.choose, num_train_epochs=knobs.epochs
        ),
        blocks.evaluate(cfg, "data_mixing"),
    ]

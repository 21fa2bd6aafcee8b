"""base: the base model, evaluated. Every other recipe measures its gains against this."""

from __future__ import annotations

from dataclasses import dataclass

from synergy.config import Config
from synergy.stages import Stage
from synergy.strategies import blocks


@dataclass(frozen=True)
class Knobs:
    pass


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    return [blocks.benchmarks(cfg), blocks.evaluate(cfg, blocks.BASE, instructed=False)]

"""checkpoints: given models, evaluated like those of all other recipes, and nothing trained.

``synergy reproduce checkpoints=FILE`` fills the knob from a file (``synergy/checkpoints.py``); the base model is ``model``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import blocks


@dataclass(frozen=True)
class Knobs:
    models: dict[str, Any] = field(default_factory=dict)
    """name -> path, revision and instructed (whether it gets ``data.instruction``, as tuned models do)."""
    base_instructed: bool = False


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if taken := {blocks.BASE, blocks.SOURCE, "benchmarks"} & set(knobs.models):
        raise UserError(f"recipe.models: {', '.join(sorted(taken))} is a name that Synergy needs; choose another")
    return [
        blocks.benchmarks(cfg),
        blocks.evaluate(cfg, blocks.BASE, knobs.base_instructed),
        *(blocks.evaluate(cfg, name, bool(given.get("instructed", True))) for name, given in knobs.models.items()),
    ]

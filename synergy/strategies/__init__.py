"""Strategies: pure functions from config to stages. One file per strategy; each shows its whole algorithm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synergy import ranges
from synergy.cluster import needs
from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import blocks

STRATEGIES = (
    "base", "sft", "rl", "two_stage", "progressive", "interleaved", "data_mixing", "model_merging", "distill", "tag",
    "checkpoints",
)  # fmt: skip


def stages(cfg: Config) -> list[Stage]:
    """The stages of ``cfg.recipe`` in the order they run. Raises UserError for an unknown strategy or knob."""
    knobs = dict(cfg.recipe)
    name = str(knobs.pop("strategy", ""))
    if name not in STRATEGIES:
        raise UserError(f"recipe.strategy={name!r} is unknown; one of: {', '.join(STRATEGIES)}")
    module = importlib.import_module(f"synergy.strategies.{name}")
    planned: list[Stage] = module.stages(cfg, _knobs(module.Knobs, knobs, name))
    outside = {
        blocks.BASE,
        blocks.SOURCE,
        blocks.BENCHMARK_SOURCE,
        *blocks.given_models(cfg),
        *map(blocks.tagged_input, cfg.evaluate.benchmarks),
        *map(blocks.levels_input, cfg.evaluate.benchmarks),
    }
    _check_order(planned, outside)
    return needs.place(cfg, planned)


def _knobs(schema: type, given: Mapping[str, Any], name: str) -> Any:
    known = [item.name for item in fields(schema)]
    if strange := [key for key in given if key not in known]:
        raise UserError(f"recipe={name}: {ranges.unknown(f'recipe.{strange[0]}', known)}")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(given)))
    except OmegaConfBaseException as error:
        raise UserError(f"recipe.{error.full_key} ({name}): {str(error).splitlines()[0]}") from error
    ranges.ours(made, "recipe.")
    return made


def _check_order(planned: list[Stage], outside: set[str]) -> None:
    """Every stage has its own name and builds only on earlier stages or external inputs (``outside``)."""
    seen = set(outside)
    for stage in planned:
        late = set(stage.inputs.values()) - seen
        if late or stage.name in seen:
            raise ValueError(f"stage {stage.name}: {'needs later ' + str(sorted(late)) if late else 'is there twice'}")
        seen.add(stage.name)

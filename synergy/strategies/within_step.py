"""The form ``granularity: step`` of interleaved and progressive: SFT and RL in the steps of one RL stage, as the paper mixes
them (docs/within_step.md has the equation). One optimizer, one schedule, no switch between frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage, within_step
from synergy.strategies import blocks

GRANULARITIES = ("round", "step")
ROUND, STEP = ({"only": name} for name in GRANULARITIES)
"""Metadata of a knob that counts in that granularity alone."""


def wanted(knobs: Any) -> bool:
    """Whether the recipe mixes within steps. Raises UserError for another granularity, and for a knob that has another value
    than its default without an effect in this one."""
    if knobs.granularity not in GRANULARITIES:
        raise UserError(f"recipe.granularity={knobs.granularity!r} is one of {', '.join(GRANULARITIES)}")
    for item in fields(knobs):
        only, value = item.metadata.get("only", knobs.granularity), getattr(knobs, item.name)
        if only != knobs.granularity and value != item.default:
            raise UserError(
                f"recipe.{item.name}={value} needs recipe.granularity={only}; at {knobs.granularity} it does nothing"
            )
    return bool(knobs.granularity == "step")


def data(
    cfg: Config,
    name: str,
    note: str,
    passes: Sequence[str] = (),
    prefix: Mapping[str, Any] | None = None,
    prefix_rollouts: int | None = None,
    every: bool = False,
) -> Stage:
    """Plain RL's questions with their traces; with ``prefix`` (schedule, unit) zero-pass ones with a beginning of theirs.
    every: each question's trace will be a row beside its rollouts."""
    settings = {
        "part": "within_step",
        **blocks.order(cfg),
        "room": cfg.lengths.rl,
        "prefix_rollouts": prefix_rollouts,
        "within_step": {**(prefix or {}), **({"rollouts": within_step.rollouts(cfg.rl.verl)} if every else {})},
    }
    inputs = {"base": blocks.BASE, "data": "data", **{f"passes_{i}": stage for i, stage in enumerate(passes)}}
    return Stage(name, "prepare", settings, inputs, note)


def rl(cfg: Config, name: str, mixed: str, note: str, copies: int | None = None, **told: Any) -> Stage:
    """verl on these questions, with SFT in its steps. copies: the rollouts that a whole trace counts as, null: all of a
    question's; told: of ``synergy.stages.within_step.settings``."""
    n = within_step.rollouts(cfg.rl.verl)
    setting = within_step.settings(cfg.rl.verl, copies=n if copies is None else min(n, copies), **told)
    return blocks.rl(cfg, name, blocks.BASE, mixed, note, cfg.lengths.rl, within_step=setting)

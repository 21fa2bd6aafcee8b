"""Disk that a plan will need, estimated from the base model's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from synergy.driver.plan import Step
from synergy.stages import rl_critic

OPTIMIZER_FACTOR = 4
"""fp32 master weights and Adam's two moments beside the weights, in units of float32 weights."""
CRITIC_FACTOR = 3
"""The same for a critic of PPO, which is never handed on: no weights beside."""
KEPT_CHECKPOINTS = 2
DATA_BYTES = 50_000_000


def weights(folder: Path) -> int:
    """Bytes of the weight files in a checkpoint folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def of_step(step: Step, model: int) -> int:
    """Bytes that a step writes at its peak: native checkpoints while it trains, and its published output."""
    if step.action == "reuse":
        return 0
    if step.stage.kind in ("sft", "rl"):
        every = step.stage.settings.get("choose") == "best"  # a checkpoint per epoch
        kept = math.ceil(step.stage.settings["config"]["num_train_epochs"]) if every else KEPT_CHECKPOINTS
        critic = step.stage.kind == "rl" and rl_critic.wanted(step.stage.settings["verl"])
        return model * (1 + kept * (OPTIMIZER_FACTOR * _resumable(step) + CRITIC_FACTOR * critic or 1))
    return 2 * model if step.stage.kind == "merge" else DATA_BYTES


def _resumable(step: Step) -> bool:
    """Whether the stage's checkpoints hold the optimizer."""
    if step.stage.kind == "sft":
        return not step.stage.settings["config"].get("save_only_model")
    actor = step.stage.settings["verl"].get("actor_rollout_ref", {}).get("actor", {})
    return "optimizer" in actor.get("checkpoint", {}).get("save_contents", ["optimizer"])


def needed(steps: Sequence[Step]) -> int:
    """Bytes free at the start: all published outputs, and the native checkpoints of the largest stage."""
    base = next((step.inputs["base"] for step in steps if "base" in step.inputs), None)
    model = weights(base) if base is not None and base.is_dir() else 0
    peaks = [of_step(step, model) for step in steps]
    kept = sum(model for step in steps if step.stage.kind in ("sft", "rl", "merge") and step.action != "reuse")
    return kept + max(peaks, default=0)

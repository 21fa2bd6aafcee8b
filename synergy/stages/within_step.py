"""SFT and RL in one step (``recipe.granularity=step``): what an ``rl`` stage with the setting ``within_step`` tells verl.

The plug-ins are in launch/plugins: verl_within_step.py (advantages and loss, with the equation), verl_within_rollout.py
(rollouts that begin with a trace), verl_within_rows.py (which rows take SFT) and verl_within_delay.py (traces that wait).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy.errors import UserError

SETTING = "within_step"
BASELINES = ("group", "alike")
POLL_SECONDS = 0.1
"""Between two looks at whether the rollouts are there; verl's own buffer looks every 2 s."""


def settings(
    verl: Mapping[str, Any],
    sft_weight: float,
    copies: int,
    baseline: str,
    pass_rate: float,
    begun: bool,
    every: bool = False,
    buffer: int = 0,
) -> dict[str, Any]:
    """The setting of a stage. copies: the rollouts that a whole trace counts as; begun: whether rollouts begin with a prefix;
    every: each question's trace is a row beside its rollouts; buffer: traces that wait for SFT, 0: none. Raises UserError for
    values, and for keys of verl's, that can't hold."""
    _check(verl)
    if baseline not in BASELINES:
        raise UserError(f"recipe.baseline={baseline!r} is one of {', '.join(BASELINES)}")
    if not 0 <= pass_rate < 1:
        raise UserError(f"recipe.pass_rate={pass_rate}: a share of right rollouts from 0, and below 1, is wanted")
    if buffer < 0:
        raise UserError(f"recipe.sft_buffer={buffer}: a number of traces is wanted, 0 for SFT in the same step")
    told = {"sft_weight": sft_weight, "copies": copies, "baseline": baseline, "pass_rate": pass_rate, "begun": begun}
    return told | ({"every": True} if every else {}) | ({"buffer": buffer} if buffer else {})


def rollouts(verl: Mapping[str, Any]) -> int:
    """Rollouts of a question."""
    return int(verl["actor_rollout_ref"]["rollout"]["n"])


def _check(verl: Mapping[str, Any]) -> None:
    algorithm, actor = verl.get("algorithm", {}), verl["actor_rollout_ref"]["actor"]
    estimator = algorithm.get("adv_estimator")
    if estimator != "grpo":
        raise UserError(
            f"recipe.granularity=step has GRPO's advantages, and rl.verl.algorithm.adv_estimator is {estimator}: a trace of "
            "which the policy generated nothing has no group to be compared with, and a critic would learn its value from it; "
            "take adv_estimator=grpo, or recipe.granularity=round"
        )
    wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "algorithm.filter_groups.enable": (_at(algorithm, "filter_groups", "enable"), (None, False)),
        **{
            f"algorithm.rollout_correction.{name}": (_at(algorithm, "rollout_correction", name), (None, False))
            for name in ("rollout_is", "rollout_rs", "bypass_mode")
        },
        "actor_rollout_ref.actor.policy_loss.loss_mode": (_at(actor, "policy_loss", "loss_mode"), (None, "vanilla")),
        "actor_rollout_ref.actor.strategy": (actor.get("strategy"), (None, "fsdp", "fsdp2")),
        "trainer.v1.trainer_mode": (_at(verl, "trainer", "v1", "trainer_mode"), (None, "sync")),
        "trainer.v1.sampler.custom_sampler.name": (
            _at(verl, "trainer", "v1", "sampler", "custom_sampler", "name"),
            (None, "FastPoll"),
        ),
        "actor_rollout_ref.rollout.agent.default_agent_loop": (
            _at(verl, "actor_rollout_ref", "rollout", "agent", "default_agent_loop"),
            (None, "single_turn_agent", "prefix_agent"),
        ),
    }
    for key, (value, known) in wanted.items():
        if value not in known:
            other = " or ".join(str(one) for one in known if one is not None)
            raise UserError(f"recipe.granularity=step can't hold with rl.verl.{key}={value}; it needs {other}")


def _at(tree: Mapping[str, Any], *names: str) -> Any:
    found: Any = tree
    for name in names:
        found = (found or {}).get(name)
    return found


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Enters the key where it is set; without it the key is that of plain RL."""
    return {SETTING: settings[SETTING]} if SETTING in settings else {}


def verl_overrides(settings: Mapping[str, Any], model: Path, checkpoints: Path) -> dict[str, Any]:
    """verl keys that load and set the plug-ins. model, checkpoints: folders, of the policy at the beginning and of verl's."""
    told = settings.get(SETTING)
    if told is None:
        return {}
    loaded = _at(settings["verl"], "actor_rollout_ref", "model", "external_lib") or []
    libraries = [loaded] if isinstance(loaded, str) else list(loaded)
    sampler, algorithm = "trainer.v1.sampler", f"++algorithm.{SETTING}"
    found = {
        "algorithm.adv_estimator": SETTING,
        "algorithm.rollout_correction": None,  # by default it measures only, and fails on a step that has SFT alone
        **{f"{algorithm}.{name}": told[name] for name in ("sft_weight", "copies", "baseline")},
        "actor_rollout_ref.actor.policy_loss.loss_mode": SETTING,
        "actor_rollout_ref.model.external_lib": [*libraries, "verl_within_step"],
        f"{sampler}.custom_sampler.path": "pkg://verl_within_rows",
        f"{sampler}.custom_sampler.name": "WithinStep",
        **{f"++{sampler}.sampler_kwargs.{name}": told[name] for name in ("pass_rate", "copies")},
        f"++{sampler}.sampler_kwargs.poll": POLL_SECONDS,
        f"++{sampler}.sampler_kwargs.model": str(model),
        f"++{sampler}.sampler_kwargs.room": settings["max_response_length"],
    }
    if told.get("every"):
        found["actor_rollout_ref.rollout.n"] = rollouts(settings["verl"]) + 1
        found[f"++{sampler}.sampler_kwargs.every"] = True
    if told.get("buffer"):
        found[f"++{sampler}.sampler_kwargs.buffer"] = told["buffer"]
        found[f"++{sampler}.sampler_kwargs.waiting"] = str(checkpoints / "waiting")
    if told["begun"]:
        found["actor_rollout_ref.rollout.agent.default_agent_loop"] = "within_step_agent"
    return found


PARTS = ("begun", "free")
FIGURES = (
    *("zero_pass", "sft_tokens", "sft_traces", "sft_waiting", "prefix", "sft_share", "empty_share", "reward", "length"),
    *(f"{name}_{part}" for name in ("reward", "length") for part in PARTS),
)
"""What the plug-in logs of a step below ``synergy/``. begun, free: of rollouts with a prefix of a trace, and without."""


def figures(data: Mapping[str, float]) -> dict[str, float]:
    """Our names of a step's figures. reward and length are of all rollouts that the policy wrote, where verl's own leave out
    those in whose place a trace has come; sft_loss is a mean over SFT tokens; both shares are of the actor's tokens."""
    found = {name: data[f"synergy/{name}"] for name in FIGURES if f"synergy/{name}" in data}
    if "synergy/prefix" in data and "synergy/reward" not in data:  # whole traces alone: verl's own are of a trace
        found |= {"reward": math.nan, "length": math.nan}
    if data.get("actor/sft_tokens"):
        found["sft_loss"] = data["actor/sft_nll"] / data["actor/sft_tokens"]
    return found

"""Learning-rate schedules of recipes in rounds: round k of R runs the part from k/R to (k+1)/R of one schedule.

A strategy gives the stages of its rounds the setting ``schedule_part``, ``[k, R]``; without it a stage runs the whole of its
schedule, as in recipes of one stage. The frameworks do it by launch/plugins/schedule_part.py, which says how; a schedule that
is flat has no parts, and nothing is loaded for it. What a round knows of the others is its learning rate alone: the optimizer's
state starts anew at every switch, so that Adam's averages begin at zero in mid-schedule.

SFT rounds and RL rounds have a schedule each. A round whose SFT is skipped, as no question is zero-pass, leaves its part out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synergy.errors import UserError

SETTING = "schedule_part"
VARIABLE = "SYNERGY_SCHEDULE_PART"
PLUGIN = "verl_schedule_part"
ROLES = ("actor_rollout_ref.actor", "critic")
BY_LOSS = ("reduce_lr_on_plateau", "greedy")
"""transformers' schedulers that follow the loss, not the step."""
COUNTS = ("num_stable_steps", "num_decay_steps", "timescale")
"""Keys of ``lr_scheduler_kwargs`` in steps."""
OTHER_TRAINERS = ("use_mca", "use_hyper_parallel", "USE_MCA", "USE_RAY", "USE_V1")
"""LLaMA-Factory's keys and environment variables that have another trainer, or other processes, do the work."""


def of_sft(config: Mapping[str, Any], index: int, rounds: int) -> list[int] | None:
    """The setting of an SFT stage with this LLaMA-Factory config: round ``index``, from 0, of ``rounds``."""
    name = config.get("lr_scheduler_type", "linear")
    flat = name == "constant" or (name == "constant_with_warmup" and not _warm_up(config))
    return None if flat or rounds == 1 else [index, rounds]


def of_rl(verl: Mapping[str, Any], index: int, rounds: int) -> list[int] | None:
    """The same of an RL stage, from verl's config."""
    flat = all(_flat(_at(verl, f"{role}.optim")) for role in ROLES)
    return None if flat or rounds == 1 else [index, rounds]


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A part enters the key; without one the key is that of a whole schedule."""
    part = settings.get(SETTING)
    return {} if part is None else {SETTING: part}


def rounds(settings: Mapping[str, Any]) -> int:
    part = settings.get(SETTING)
    return 1 if part is None else int(part[1])


def env(settings: Mapping[str, Any]) -> dict[str, str]:
    """The environment variable by which the plug-ins are told the part."""
    part = settings.get(SETTING)
    return {} if part is None else {VARIABLE: f"{part[0]}/{part[1]}"}


def verl_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """verl keys that load the plug-in in every process of the job, by Ray, since a cluster's workers have an environment
    of their own."""
    found: dict[str, Any] = dict(env(settings))
    if found:
        loaded = settings["env"].get("VERL_USE_EXTERNAL_MODULES")
        found["VERL_USE_EXTERNAL_MODULES"] = ",".join([*([loaded] if loaded else []), PLUGIN])
    return {f"++ray_kwargs.ray_init.runtime_env.env_vars.{name}": value for name, value in found.items()}


def check_sft(settings: Mapping[str, Any]) -> None:
    """Raises UserError for a schedule that cannot be cut into rounds."""
    config = settings["config"]
    if settings.get(SETTING) is None:
        return
    if (name := config.get("lr_scheduler_type")) in BY_LOSS:
        raise UserError(
            f"sft.config.lr_scheduler_type={name} follows the loss, and a recipe in rounds runs one schedule over all of "
            "them; take one that follows the step, as cosine or linear"
        )
    if config.get("warmup_steps", 0) >= 1:
        raise UserError(_counted("sft.config.warmup_steps", "a share of the steps in sft.config.warmup_ratio"))
    given = config.get("lr_scheduler_kwargs") or {}
    for name in COUNTS:
        if name in given:
            raise UserError(_counted(f"sft.config.lr_scheduler_kwargs: {name}", "another sft.config.lr_scheduler_type"))
    for name in OTHER_TRAINERS:
        if config.get(name) or str(settings["env"].get(name, "")).lower() in ("1", "true", "y"):
            raise UserError(
                f"{name} is set: the SFT rounds of one schedule need LLaMA-Factory's usual trainer; take it out"
            )


def check_rl(settings: Mapping[str, Any]) -> None:
    """The same for verl."""
    verl = settings["verl"]
    if settings.get(SETTING) is None:
        return
    for role in ROLES:
        if (_at(verl, f"{role}.optim").get("lr_warmup_steps") or 0) > 0:
            name = f"rl.verl.{role}.optim.lr_warmup_steps"
            raise UserError(_counted(name, f"a share of the steps in {name}_ratio"))
        strategy = _at(verl, role).get("strategy", "fsdp")
        if strategy not in ("fsdp", "fsdp2") or verl.get("model_engine", "dp") != "dp":
            raise UserError(
                f"rl.verl.{role}: the RL rounds of one schedule need strategy fsdp or fsdp2; or set a constant schedule"
            )


def _counted(name: str, instead: str) -> str:
    return f"{name} counts steps, and the rounds of a recipe differ in theirs; set {instead}"


def _warm_up(config: Mapping[str, Any]) -> bool:
    return bool(config.get("warmup_ratio") or config.get("warmup_steps"))


def _flat(optim: Mapping[str, Any]) -> bool:
    """verl's defaults: a constant rate without warm-up."""
    names = {optim.get(key) for key in ("lr_scheduler_type", "lr_decay_style", "warmup_style")}
    warm_up = (optim.get("lr_warmup_steps") or 0) > 0 or optim.get("lr_warmup_steps_ratio")
    return names <= {None, "constant"} and not warm_up


def _at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for name in path.split("."):
        tree = tree.get(name) or {}
    return tree

"""The critic of PPO beside verl's policy: in the settings, on verl's command line, in its checkpoints.

The recipes carry the keys of a critic always, verl builds one for algorithm.adv_estimator=gae only. A stage without a
critic is planned without these keys, so that they are no part of what plain GRPO is known by.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy.errors import UserError
from synergy.stages.verl_keys import flatten


def wanted(verl: Mapping[str, Any]) -> bool:
    """Whether verl builds a critic: its ``need_critic`` (verl/trainer/ppo/utils.py). verl: its keys, nested or dotted. Raises
    UserError for GAE without."""
    told = flatten(verl)
    gae, enable = told.get("algorithm.adv_estimator") == "gae", told.get("critic.enable")
    if gae and enable is False:
        raise UserError(
            "rl.verl.critic.enable=false leaves algorithm.adv_estimator=gae without values; drop one of them"
        )
    return gae if enable is None else bool(enable)


def settings(verl: Mapping[str, Any], verl_add: Mapping[str, Any]) -> dict[str, Any]:
    """Both parts of verl's native settings, without the critic's keys where there is no critic."""
    parts = {"verl": verl, "verl_add": verl_add}
    left_out = set() if wanted(verl) else {"critic"}
    return {part: {k: v for k, v in keys.items() if k not in left_out} for part, keys in parts.items()}


def overrides(verl: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """The driver's keys: the critic begins as the policy does, with a new value head. verl takes its tokenizer there too."""
    return {"critic.model.path": str(model)} if wanted(verl) else {}


def world_size(folder: Path) -> int | None:
    """How many processes wrote verl's checkpoint of a model; None where there is no shard."""
    shards = [p.name for p in folder.glob("model_world_size_*_rank_*.pt")]
    return int(shards[0].split("_")[3]) if shards else None


def shards_whole(folder: Path) -> bool:
    """Whether verl's checkpoint of a model holds all shards of the world size that wrote it, none cut short: torch writes zip
    files, whose directory is at their end."""
    world = world_size(folder)
    kinds = ("model", "optim", "extra_state")
    return world is not None and all(
        zipfile.is_zipfile(folder / f"{kind}_world_size_{world}_rank_{rank}.pt")
        for kind in kinds
        for rank in range(world)
    )

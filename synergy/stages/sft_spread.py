"""How LLaMA-Factory's training is spread over the GPUs of this host, or of a cluster's nodes, and what of that is refused.

``sft.batch`` is what a step sees in all; accumulation follows from it, so that the number of GPUs and the rows that one of
them takes at a time change nothing but speed, and stay out of the identity. The weights are sharded by FSDP2
(``sft.config.fsdp``, transformers' own key) or by DeepSpeed (``sft.config.deepspeed``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy import environments, machine
from synergy.cluster import needs
from synergy.errors import UserError

MICRO = "per_device_train_batch_size"
ACCUMULATION = "gradient_accumulation_steps"
ON_LOOPBACK = {"PET_RDZV_BACKEND": "loopback", "PET_RDZV_ENDPOINT": f"{machine.HOST}:0"}
"""torchrun's own settings by which its store listens on loopback (launch/plugins/torchrun_loopback.py)."""
FILES = ("deepspeed", "fsdp_config")
"""Keys that may name a JSON file; what it says counts, not where it lies."""
FSDP_WEIGHTS = "pytorch_model_fsdp.bin"
"""Whole weights under run-time names, which FSDP resumes from; accelerate 1.11, utils/fsdp_utils.py."""


def written_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the JSON files that it names in their place. Raises UserError for a file that can't be read."""
    made = dict(config)
    for key in FILES:
        if isinstance(name := made.get(key), str):
            try:
                made[key] = json.loads(Path(name).expanduser().read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"sft.config.{key}={name}: not a readable JSON file ({error})") from error
    return made


def identity(config: Mapping[str, Any], batch: int | None) -> dict[str, Any]:
    """The part of the config that decides the result."""
    ours = () if batch is None else (MICRO, ACCUMULATION)
    return {key: value for key, value in written_out(config).items() if key not in ours}


def processes(settings: Mapping[str, Any]) -> int:
    """One per GPU: ``sft.gpus``, or all that the host has, or those of the stage's nodes on a cluster; one without GPU."""
    return _nodes(settings) * _per_node(settings)


def _nodes(settings: Mapping[str, Any]) -> int:
    return int(settings.get(needs.SETTING, {}).get("nodes", 1))


def _per_node(settings: Mapping[str, Any]) -> int:
    if placed := settings.get(needs.SETTING):
        return max(1, int(placed["gpus"]))
    return int(settings["gpus"] or max(1, len(machine.gpus())))


def on_gpus(settings: Mapping[str, Any]) -> bool:
    """Whether it trains on any."""
    placed = settings.get(needs.SETTING)
    return bool(placed["gpus"] if placed else machine.gpus())


def sharded(config: Mapping[str, Any]) -> bool:
    return bool(config.get("fsdp") or config.get("deepspeed"))


def by_rule(config: Mapping[str, Any]) -> bool:
    """Whether the rows of a micro-batch are left to the rule (synergy/stages/fit_sft.py)."""
    return MICRO in config and config[MICRO] is None


def at_a_time(config: Mapping[str, Any]) -> int:
    """Rows of a micro-batch: LLaMA-Factory's default where nothing is told, at least one where the rule chooses (null)."""
    return int(config.get(MICRO, 8) or 1)


def accumulation(settings: Mapping[str, Any]) -> int:
    """Micro-batches to a step. Raises UserError where the batch of the recipe can't be had."""
    config, batch, count = settings["config"], settings["batch"], processes(settings)
    if batch is None:
        if count > 1:
            raise UserError(
                f"sft.batch=null with {count} processes: a step would see {count} times the rows; set sft.batch to the "
                f"rows of a step and drop sft.config.{ACCUMULATION}, or set sft.gpus=1"
            )
        if by_rule(config):
            raise UserError(f"sft.config.{MICRO}=null is chosen from sft.batch, which is null too; set one of them")
        return int(config.get(ACCUMULATION, 1))
    if ACCUMULATION in config:
        raise UserError(
            f"sft.config.{ACCUMULATION} follows from sft.batch={batch}; drop one of them: "
            f"sft.batch=null, or ~sft.config.{ACCUMULATION}"
        )
    micro = at_a_time(config)
    steps, left = divmod(batch, micro * count)
    if left or not steps:
        raise UserError(
            f"sft.batch={batch} is not made of {count} processes (sft.gpus) times {micro} rows (sft.config.{MICRO}); "
            f"choose them so that {batch} is a multiple of their product"
        )
    return steps


def env(settings: Mapping[str, Any]) -> dict[str, str]:
    """What LLaMA-Factory's launcher and accelerate read. FSDP2 saves shards and no model unless told to save it whole;
    the first two of its variables are known before the process group is made, which then can gather on CPU too."""
    config, count = settings["config"], processes(settings)
    torchrun = count > 1 or sharded(config)
    made = {"NPROC_PER_NODE": str(_per_node(settings)), "NNODES": str(_nodes(settings))} | (
        {"FORCE_TORCHRUN": "1"} if torchrun else {}
    )
    if torchrun and _nodes(settings) == 1:
        made |= ON_LOOPBACK
    if config.get("fsdp"):
        made |= {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_VERSION": "2"}
    return made


def resumes_by_itself(folder: Path) -> bool:
    """Whether a native checkpoint is FSDP's or DeepSpeed's own: weights and optimizer under run-time names."""
    return ((folder / FSDP_WEIGHTS).exists() and (folder / "optimizer.bin").exists()) or any(
        folder.glob("global_step*")
    )


def check_resume(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError for a checkpoint of DeepSpeed's that another number of processes wrote: ZeRO can't share it out
    anew. FSDP's is whole and can be."""
    wrote, count = len(list(folder.glob("global_step*/*_optim_states.pt"))), processes(settings)
    if wrote and wrote != count:
        raise UserError(
            f"{folder} was written by {wrote} processes, and DeepSpeed can't go on from it with {count}: set sft.gpus={wrote}, "
            "or delete it to begin anew"
        )


def check(settings: Mapping[str, Any], python: str) -> None:
    """Raises UserError for what can't be launched as asked, would train wrongly, or would end without a model."""
    config, seen, count = written_out(settings["config"]), machine.gpus(), processes(settings)
    placed = needs.SETTING in settings
    if placed and settings["gpus"] not in (None, _per_node(settings)):
        raise UserError(
            f"sft.gpus={settings['gpus']} with cluster=ray: set cluster.gpus or cluster.stages.sft.gpus instead"
        )
    if seen and count > len(seen) and not placed:
        raise UserError(f"sft.gpus={count}: this host has {len(seen)}")
    steps = accumulation(settings)
    taken = sorted({"NPROC_PER_NODE", "NNODES", "FORCE_TORCHRUN"} & set(settings["env"]))
    if taken:
        raise UserError(f"sft.env.{taken[0]} is set by the driver; set sft.gpus, of one host")
    if sharded(config) and not seen and not placed:
        key = "fsdp" if config.get("fsdp") else "deepspeed"
        raise UserError(f"sft.config.{key} needs GPUs, and there are none here; set sft.config.{key}=null")
    if config.get("fsdp"):
        _check_fsdp(config)
    if config.get("deepspeed"):
        _check_deepspeed(config["deepspeed"], steps, python)


def _check_fsdp(config: Mapping[str, Any]) -> None:
    if config.get("deepspeed"):
        raise UserError("sft.config.fsdp and sft.config.deepspeed shard the weights twice; set one of them to null")
    named = config.get("fsdp_config") or {}
    if str(named.get("version", named.get("fsdp_version", 1))) != "2":
        raise UserError(
            "sft.config.fsdp without fsdp_config.version=2 is FSDP 1, which flattens tensors of one dtype only: "
            "the frozen vision tower has another; set +sft.config.fsdp_config.version=2"
        )


def _check_deepspeed(config: Mapping[str, Any], steps: int, python: str) -> None:
    version = environments.versions(python).get("deepspeed")
    if version is None:
        raise UserError(
            f"sft.config.deepspeed is set, but {python} has no deepspeed; install it there (0.19 or newer), or set "
            "sft.config.deepspeed=null and shard with sft.config.fsdp (recipes/sft/paper.yaml)"
        )
    zero = config.get("zero_optimization") or {}
    stage, offload = int(zero.get("stage", 0)), (zero.get("offload_optimizer") or {}).get("device", "none")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    old = numbers is not None and (int(numbers[1]), int(numbers[2])) < (0, 19)
    if old and stage in (1, 2) and offload not in (None, "none") and steps > 2:
        raise UserError(
            f"sft.config.deepspeed: DeepSpeed {version} with ZeRO-{stage}, the optimizer offloaded and {steps} "
            "micro-batches to a step loses some of their gradients; take 0.19 or newer, ZeRO-3, no offload_optimizer, or "
            f"more rows per process (sft.config.{MICRO})"
        )
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "sft.config.deepspeed: ZeRO-3 would save shards and no model; set "
            "zero_optimization.stage3_gather_16bit_weights_on_model_save to true"
        )

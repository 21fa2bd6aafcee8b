"""How SFT and RL fit into the memory of the GPUs: what they need there, and the rule that chooses the keys left at null.

Both frameworks train float32 weights by default (LLaMA-Factory without pure_bf16, verl with model_dtype fp32). Bytes:

    states       weights 4, gradient 4, Adam's moments 8 a trained parameter (half of each in bfloat16); weights alone a frozen
                 one; shared out among the GPUs where they are sharded
    activations  of a micro-batch's tokens: 2 x hidden size x layers with gradient checkpointing, and 18 x vocabulary for the
                 logits, their copies and gradients (17.3 measured: benchmarks/results/h200.md), which verl's fused kernels save
    vLLM         gpu_memory_utilization of the GPU while it generates; it sleeps while the policy trains
    reference    4 a parameter, shared out, where ref.fsdp_config.param_offload is false

The rule: policy and optimizer go to the host's memory while vLLM generates (param_offload, optimizer_offload) where they would
not stand beside it in 92 % of the GPU; tensor_model_parallel_size is the smallest power of two that divides a node's GPUs and
with which vLLM's weights take at most half of its share. Where the GPU's memory is not known, they go, and it is 1.
LLaMA-Factory takes as many rows at a time (per_device_train_batch_size) as fit beside the states, were all as long as the
longest: the largest power of two that divides a GPU's share of the batch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy import machine
from synergy.cluster import needs
from synergy.data import checks
from synergy.driver import checkpoint
from synergy.errors import UserError
from synergy.stages import Stage, sft_spread
from synergy.stages.verl_keys import flatten

USABLE = 0.92
"""Of a GPU's memory; the rest is CUDA's and the allocator's."""
LOGITS = 18
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
REFERENCE = "actor_rollout_ref.ref.fsdp_config"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
OFFLOAD = (f"{ACTOR}.fsdp_config.param_offload", f"{ACTOR}.fsdp_config.optimizer_offload")
PARALLEL = f"{ROLLOUT}.tensor_model_parallel_size"
CHOSEN = (*OFFLOAD, PARALLEL)
"""verl's keys that the rule fills in where they are null."""


@dataclass(frozen=True)
class Model:
    """Parameters that are trained and that are not, and the sizes that activations go by."""

    trained: int
    frozen: int
    vocabulary: int
    hidden: int
    layers: int


@dataclass(frozen=True)
class Cards:
    """GPUs of a stage: how many, how many of them in a node, and bytes of memory of each (0: not known)."""

    count: int
    per_node: int
    memory: int


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU. states: without which nothing trains. whole: with activations, or with vLLM beside, at the peak."""

    states: int
    whole: int


@functools.lru_cache(maxsize=8)
def model(base: Path, frozen_vision: bool) -> Model | None:
    """From a checkpoint's headers and config; None for one that is not there or can't be read."""
    try:
        tensors = checkpoint.read(base)
        told = json.loads((base / "config.json").read_text())
        told |= told.get("text_config", {})
        sizes = (int(told["vocab_size"]), int(told["hidden_size"]), int(told["num_hidden_layers"]))
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    count, vision = checkpoint.parameters(tensors), 0
    if frozen_vision:
        vision = checkpoint.parameters({n: t for n, t in tensors.items() if n.startswith("visual.")})
    return Model(count - vision, vision, *sizes)


def cards(stage: Stage) -> Cards:
    """Those that the stage would run on: of the cluster's nodes, or of this host."""
    if (placed := needs.of(stage)) is not None:
        return Cards(placed.nodes * placed.gpus, placed.gpus, int(placed.gpu_memory_gb * 1e9))
    if stage.kind == "sft":
        per_node, nodes = sft_spread.processes(stage.settings), 1
    else:
        trainer = stage.settings["verl"].get("trainer", {})
        per_node, nodes = int(trainer.get("n_gpus_per_node", 8)), int(trainer.get("nnodes", 1))
    return Cards(nodes * per_node, per_node, machine.gpu_memory())


def sft(settings: Mapping[str, Any], of: Model, on: Cards) -> Need:
    """On each GPU, for rows as long as the cut-off."""
    config = settings["config"]
    shared = on.count if sft_spread.sharded(config) else 1
    size = 2 if config.get("pure_bf16") else 4
    states = size * (4 * of.trained + of.frozen) // shared
    tokens = int(config.get("cutoff_len", 2048)) * sft_spread.at_a_time(config)
    return Need(states, states + tokens * (LOGITS * of.vocabulary + 2 * of.hidden * of.layers))


def rows(settings: Mapping[str, Any], longest: int, of: Model, on: Cards) -> int:
    """The rule's rows of a micro-batch. longest: tokens of the longest row."""
    share = settings["batch"] // on.count
    made = 1

    def whole(count: int) -> int:
        config = settings["config"] | {"cutoff_len": longest, sft_spread.MICRO: count}
        return sft({**settings, "config": config}, of, on).whole

    while share % (2 * made) == 0 and whole(2 * made) <= USABLE * on.memory:
        made *= 2
    return made


def rl(settings: Mapping[str, Any], of: Model, on: Cards) -> Need:
    """On each GPU, with the rule's choice where nothing is told."""
    told = flatten(settings["verl"])
    states, held = _width(told) * (4 * of.trained + of.frozen) // on.count, _reference(told, of, on)
    each = 2 * of.hidden * of.layers + (0 if told.get(FUSED) else LOGITS * of.vocabulary)
    training = states + held + int(told.get(f"{ACTOR}.ppo_max_token_len_per_gpu", 16384)) * each
    away = chosen(told, of, on) | {key: told[key] for key in OFFLOAD if told.get(key) is not None}
    beside = 0 if all(away[key] for key in OFFLOAD) else _idle(told, of, on)
    return Need(states, max(training, beside + held + _vllm(told, on)))


def _width(told: Mapping[str, Any]) -> int:
    return 2 if told.get(f"{ACTOR}.fsdp_config.model_dtype", "fp32") in ("bf16", "bfloat16") else 4


def _idle(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    """What stays on a GPU between updates: all but the gradients."""
    return _width(told) * (3 * of.trained + of.frozen) // on.count


def _reference(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    """The reference model's weights, where there is one and it stays on the GPU (launch/plugins/verl_reference.py)."""
    there = told.get(f"{ACTOR}.use_kl_loss") or told.get("algorithm.use_kl_in_reward")
    if not there or told.get(f"{REFERENCE}.param_offload"):
        return 0
    width = 4 if told.get(f"{REFERENCE}.model_dtype", "fp32") == "fp32" else 2
    return width * (of.trained + of.frozen) // on.count


def _vllm(told: Mapping[str, Any], on: Cards) -> int:
    return int(float(told.get(f"{ROLLOUT}.gpu_memory_utilization", 0.5)) * on.memory)


def chosen(told: Mapping[str, Any], of: Model | None, on: Cards) -> dict[str, Any]:
    """The rule's values of CHOSEN. told: verl's keys, dotted."""
    wide, away = 1, True
    if of is not None and on.memory and on.count:
        while 4 * (of.trained + of.frozen) > wide * _vllm(told, on) and on.per_node % (2 * wide) == 0:
            wide *= 2
        away = _idle(told, of, on) + _reference(told, of, on) + _vllm(told, on) > USABLE * on.memory
    return {**dict.fromkeys(OFFLOAD, away), PARALLEL: wide}


def filled(stage: Stage, base: Path) -> dict[str, Any]:
    """The rule's values of an RL stage's keys that are null."""
    told = flatten(stage.settings["verl"])
    empty = [key for key in CHOSEN if key in told and told[key] is None]
    made = chosen(told, model(base, _frozen(stage)), cards(stage)) if empty else {}
    return {key: made[key] for key in empty}


def micro_batch(stage: Stage, base: Path, file: Path, media: Path) -> int:
    """``rows`` for a stage about to run, 1 where its model or GPUs are not known. file: its data, in LLaMA-Factory's format.
    media: the folder of its images, with their tokens beside."""
    found = needed(stage, base)
    of = model(base, _frozen(stage))
    if found is None or of is None:
        return 1
    visual = json.loads((media / "train_visual_tokens.json").read_text())
    longest = max(checks.row_lengths(file, visual, checks.tokenizer(base)))
    return rows(stage.settings, longest, of, found[1])


def needed(stage: Stage, base: Path | None) -> tuple[Need, Cards] | None:
    """None for stages that train nothing or not the whole model, and where the base or the GPUs are not known."""
    if stage.kind not in ("sft", "rl") or base is None:
        return None
    on = cards(stage)
    config = stage.settings["config"] if stage.kind == "sft" else {}
    if not on.count or not on.memory or config.get("finetuning_type", "full") != "full" or config.get("deepspeed"):
        return None
    found = model(base, _frozen(stage))
    if found is None:
        return None
    return (sft if stage.kind == "sft" else rl)(stage.settings, found, on), on


def _frozen(stage: Stage) -> bool:
    """Whether the vision tower is: LLaMA-Factory's default, and not verl's."""
    if stage.kind == "sft":
        return bool(stage.settings["config"].get("freeze_vision_tower", True))
    return bool(flatten(stage.settings["verl"]).get(f"{ACTOR}.freeze_vision_tower", False))


def check(stage: Stage, base: Path | None) -> None:
    """Raises UserError for a stage whose weights, gradients and optimizer alone don't fit."""
    found = needed(stage, base)
    if found is None or found[0].states <= USABLE * found[1].memory:
        return
    need, on = found
    ways = "sft.config.fsdp='full_shard auto_wrap' over more GPUs, or +sft.config.pure_bf16=true"
    if stage.kind == "rl":
        ways = f"more GPUs (rl.verl.trainer.n_gpus_per_node), or rl.verl.{ACTOR}.fsdp_config.model_dtype=bf16"
    raise UserError(
        f"stage {stage.name}: weights, gradients and optimizer take {need.states / 1e9:.0f} GB on each of {on.count} GPUs with "
        f"{on.memory / 1e9:.0f} GB; take {ways}, which halves them, or a smaller model"
    )

"""Whether stages fit into the memory of the GPUs, and the keys that a rule fills in (the sums: fit_sft.py, fit_rl.py,
fit_vllm.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from synergy import machine
from synergy.cluster import needs
from synergy.data import checks
from synergy.errors import UserError
from synergy.stages import Stage, fit_rl, fit_sft, fit_vllm, memory, sft_spread, verl_keys
from synergy.stages.memory import HOST_USABLE, USABLE, Cards, Need

TAKEN = "gpu_memory_gb"
"""Figure of a finished stage: the most that its training process had of one GPU."""


def cards(stage: Stage) -> Cards:
    """Those that the stage would run on: of the cluster's nodes, or of this host."""
    if (placed := needs.of(stage)) is not None:
        return Cards(placed.nodes * placed.gpus, placed.gpus, _card(stage), int(placed.memory_gb * 1e9))
    if stage.kind == "sft":
        per_node, nodes = sft_spread.processes(stage.settings), 1
    else:
        trainer = stage.settings["verl"].get("trainer", {})
        per_node, nodes = int(trainer.get("n_gpus_per_node", 8)), int(trainer.get("nnodes", 1))
    return Cards(nodes * per_node, per_node, _card(stage), machine.memory())


def _card(stage: Stage) -> int:
    """Bytes of memory of a GPU; 0 where that is not known, or there is none."""
    if (placed := needs.of(stage)) is not None:
        return int(placed.gpu_memory_gb * 1e9) if placed.gpus else 0
    return machine.gpu_memory()


def taken(stage: Stage, gib: Iterable[float]) -> dict[str, float]:
    """The figure of what the framework tells, in GiB, now and then; none without a GPU, where verl's CPU platform tells the
    process's own memory, and LLaMA-Factory 0."""
    most = max(gib, default=0.0)
    return {TAKEN: round(most * 2**30 / 1e9, 2)} if most and _card(stage) else {}


def filled(stage: Stage, base: Path) -> dict[str, Any]:
    """The rule's values of an RL stage's keys that are null, as verl's command line has them."""
    told, added = verl_keys.given(stage.settings), verl_keys.flatten(stage.settings["verl_add"])
    empty = [key for key in fit_rl.CHOSEN if key in told and told[key] is None]
    made = fit_rl.chosen(told, memory.model(base, _frozen(stage)), cards(stage)) if empty else {}
    return {f"++{key}" if key in added else key: made[key] for key in empty}


def micro_batch(stage: Stage, base: Path, file: Path, media: Path) -> int:
    """``fit_sft.rows`` for a stage about to run, 1 where its model or GPUs are not known. file: its data, in LLaMA-Factory's
    format. media: the folder of its images, with their tokens beside."""
    found = needed(stage, base)
    of = memory.model(base, _frozen(stage))
    if found is None or of is None:
        return 1
    visual = json.loads((media / "train_visual_tokens.json").read_text())
    longest = max(checks.row_lengths(file, visual, checks.tokenizer(base)))
    return fit_sft.rows(stage.settings, longest, of, found[1])


def needed(stage: Stage, base: Path | None) -> tuple[Need, Cards] | None:
    """None for stages that train nothing or not the whole model, and where the base or the GPUs are not known."""
    if stage.kind not in ("sft", "rl") or base is None:
        return None
    on = cards(stage)
    config = stage.settings["config"] if stage.kind == "sft" else {}
    if not on.count or not on.memory or config.get("finetuning_type", "full") != "full" or config.get("deepspeed"):
        return None
    found = memory.model(base, _frozen(stage))
    if found is None:
        return None
    return (fit_sft if stage.kind == "sft" else fit_rl).need(stage.settings, found, on), on


def _frozen(stage: Stage) -> bool:
    """Whether the vision tower is: LLaMA-Factory's default, and not verl's."""
    if stage.kind == "sft":
        return bool(stage.settings["config"].get("freeze_vision_tower", True))
    return bool(verl_keys.given(stage.settings).get(f"{fit_rl.ACTOR}.freeze_vision_tower", False))


def check(stage: Stage, base: Path | None) -> None:
    """Raises UserError for a stage whose weights, gradients and optimizer alone don't fit, or that sends more to its host than
    that has memory. base: of the size of the stage's model; None: not known."""
    if stage.kind in fit_vllm.KINDS and base is not None:
        card, of = _card(stage), memory.model(base, frozen_vision=True)
        if card and of is not None:
            fit_vllm.check(stage, of, card)
    found = needed(stage, base)
    if found is None:
        return
    need, on = found
    ways = "sft.config.fsdp='full_shard auto_wrap' over more GPUs, or +sft.config.pure_bf16=true"
    if stage.kind == "rl":
        fused = "" if fit_rl.fused(verl_keys.given(stage.settings)) else f"rl.verl_add.{fit_rl.ADAM}.fused=true, "
        ways = f"{fused}more GPUs (rl.verl.trainer.n_gpus_per_node), or rl.verl.{fit_rl.ACTOR}.fsdp_config.model_dtype=bf16"
    ways += ", which halves them, or a smaller model"
    if need.states > USABLE * on.memory:
        raise UserError(
            f"stage {stage.name}: weights, gradients and optimizer take {need.states / 1e9:.0f} GB on each of {on.count} GPUs "
            f"with {on.memory / 1e9:.0f} GB; take {ways}"
        )
    if on.host and need.host > HOST_USABLE * on.host:
        whose, more = "this host's memory", ""
        if needs.of(stage) is not None:
            whose, more = "a node's memory", "claim more of it (cluster.memory_gb), "
        raise UserError(
            f"stage {stage.name}: what the GPUs have no room for, and the models as they are loaded and saved, take "
            f"{need.host / 1e9:.0f} GB of {whose}, of {on.host / 1e9:.0f}; {more}make room by a lower "
            f"rl.verl.{fit_rl.ROLLOUT}.gpu_memory_utilization, or take {ways}"
        )

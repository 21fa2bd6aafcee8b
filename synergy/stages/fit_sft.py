"""How SFT fits into the memory of the GPUs, and the rule for LLaMA-Factory's rows of a micro-batch.

LLaMA-Factory trains float32 weights without pure_bf16. Bytes on a GPU:

    states       weights 4, gradient 4, Adam's moments 8 a trained parameter (half of each in bfloat16); weights alone a frozen
                 one; shared out among the GPUs where they are sharded
    activations  of a micro-batch's tokens: 2 x hidden size x layers with gradient checkpointing, and memory.LOGITS x vocabulary
    root         after them, 4 a trained parameter while Adam steps, of all second moments; a fused one has none (fit_rl.py)

The rule: as many rows at a time (per_device_train_batch_size) as fit beside the states, were all as long as the longest: the
largest power of two that divides a GPU's share of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synergy.stages import sft_spread
from synergy.stages.memory import LOGITS, USABLE, Cards, Model, Need


def need(settings: Mapping[str, Any], of: Model, on: Cards) -> Need:
    """For rows as long as the cut-off."""
    config = settings["config"]
    shared = on.count if sft_spread.sharded(config) else 1
    size = width(config)
    states = size * (4 * of.trained + of.frozen) // shared
    root = size * of.trained // shared if config.get("optim") == "adamw_torch" else 0
    tokens = int(config.get("cutoff_len", 2048)) * sft_spread.at_a_time(config)
    activations = tokens * (LOGITS * of.vocabulary + 2 * of.hidden * of.layers)
    whole = states + max(root, activations)
    return Need(states + root, whole, whole)


def width(config: Mapping[str, Any]) -> int:
    """Bytes of a weight of LLaMA-Factory's config."""
    return 2 if config.get("pure_bf16") else 4


def rows(settings: Mapping[str, Any], longest: int, of: Model, on: Cards) -> int:
    """The rule's rows of a micro-batch. longest: tokens of the longest row."""
    share = settings["batch"] // on.count
    made = 1

    def whole(count: int) -> int:
        config = settings["config"] | {"cutoff_len": longest, sft_spread.MICRO: count}
        return need({**settings, "config": config}, of, on).whole

    while share % (2 * made) == 0 and whole(2 * made) <= USABLE * on.memory:
        made *= 2
    return made

"""What the sums of a stage's memory are made of: the model, the GPUs, and the need (fit_sft.py, fit_rl.py)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from synergy.driver import checkpoint
from synergy.errors import UserError

USABLE = 0.92
"""Of a GPU's memory; the rest is CUDA's and the allocator's."""
HOST_USABLE = 0.85
"""Of a host's; the rest is the processes' own (Python, Ray, vLLM), and Ray ends what takes more than 95 %."""
LOGITS = 18
"""Bytes a token and word of the vocabulary: logits, their copies and gradients (17.3 measured: benchmarks/results/h200.md)."""


@dataclass(frozen=True)
class Model:
    """Parameters that are trained and that are not, and the sizes that activations go by. tied: output layer and embeddings are
    the same parameters, which count once. half: the checkpoint's weights are bfloat16."""

    trained: int
    frozen: int
    vocabulary: int
    hidden: int
    layers: int
    tied: bool = True
    half: bool = True

    @property
    def whole(self) -> int:
        return self.trained + self.frozen


@dataclass(frozen=True)
class Cards:
    """GPUs of a stage: how many, how many of them in a node, and bytes of memory of each; and of a node's own memory (0: not
    known)."""

    count: int
    per_node: int
    memory: int
    host: int = 0


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU. states: without which nothing trains. process: of the one that trains, at its peak. whole: the same,
    or with vLLM beside it. host: bytes of a node's own memory, at the peak (0: not looked at)."""

    states: int
    process: int
    whole: int
    host: int = 0


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
    half = {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    return Model(count - vision, vision, *sizes, tied=bool(told.get("tie_word_embeddings", False)), half=half)

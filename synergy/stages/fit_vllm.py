"""Whether the GPUs of an evaluation's servers, or of sampling's engines, hold the model's weights.

vLLM computes in two bytes a weight unless it is told float32 (``auto`` turns float32 checkpoints into two bytes), and shares
weights out among the GPUs of tensor and pipeline parallelism. What it takes of a GPU, cache included, is
gpu_memory_utilization of it, 0.92 where nothing is told (vllm 0.26, config/cache.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synergy.errors import UserError
from synergy.stages import Stage
from synergy.stages.memory import Model

KINDS = ("evaluate", "sample")
UTILIZATION = 0.92
SHORT = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-q": "quantization"}
OTHER = ("quantization", "cpu-offload-gb", "kv-cache-memory-bytes", "config", "hf-overrides")
"""With these the sum is another one, which is not done."""


def options(args: Sequence[str]) -> dict[str, str]:
    """The server's arguments by their long names."""
    found: dict[str, str] = {}
    name = ""
    for word in args:
        if word.startswith("-"):
            name, _, value = word.partition("=")
            name = SHORT.get(name, name.lstrip("-").replace("_", "-"))
            found[name] = value
        elif name:
            found[name] = word
    return found


def told(stage: Stage) -> Mapping[str, Any]:
    if stage.kind == "evaluate":
        return options(stage.settings["server"])
    return {name.replace("_", "-"): value for name, value in stage.settings["engine"].items() if value is not None}


def check(stage: Stage, of: Model, card: int) -> None:
    """Raises UserError where the weights alone are more than vLLM may take. card: bytes of memory of each GPU."""
    given = told(stage)
    if any(name in given for name in OTHER):
        return
    try:
        tensor, pipeline = (int(given.get(f"{name}-parallel-size", 1)) for name in ("tensor", "pipeline"))
        share = float(given.get("gpu-memory-utilization", UTILIZATION))
    except ValueError:  # vLLM's to refuse
        return
    width = 4 if given.get("dtype") in ("float", "float32") else 2
    if width * of.whole <= share * card * tensor * pipeline:
        return
    server = stage.kind == "evaluate"
    wider = "evaluate.server: --tensor-parallel-size" if server else "+sample.engine.tensor_parallel_size"
    more = "--gpu-memory-utilization" if server else "sample.engine.gpu_memory_utilization"
    raise UserError(
        f"stage {stage.name}: the model's weights take {width * of.whole / tensor / pipeline / 1e9:.1f} GB of each GPU, and "
        f"vLLM may take {share:g} of {card / 1e9:.1f} GB; spread them over more GPUs ({wider}={2 * tensor}), let vLLM take "
        f"more ({more}), or take a smaller model"
    )

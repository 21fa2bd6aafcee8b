"""The lengths of RL, sampling and evaluation against what their vLLM holds (max_model_len), verl's micro-batches, and the
model's own context.

verl cuts a response where max_model_len ends, and tells it as one that met no limit (0.9.1, vllm_async_server.py): lengths, and
the share that was cut off, would be wrong. vLLM's server answers no request that asks for more. Neither starts with more than
max_position_embeddings, which would be told after the stages before; nor does verl train on a sequence that is longer than a
micro-batch, which it tells when one comes, after the rollouts (utils/seqlen_balancing.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.errors import UserError
from synergy.stages import Stage, fit_rl, fit_vllm, rl_critic, verl_keys

LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""By which vLLM starts with more than the model's context."""
LOG_PROBS = tuple(f"{role}.log_prob_max_token_len_per_gpu" for role in (fit_rl.ROLLOUT, fit_rl.REFERENCE))
"""Micro-batches of those that only compute log-probabilities; without the key verl takes the policy's."""


@dataclass(frozen=True)
class Window:
    """name: where its size is set; tokens: that, None where it is the model's context; least: what it is to hold, and what that
    is."""

    name: str
    tokens: int | None
    least: int
    what: str


def window(stage: Stage) -> Window | None:
    """None for a stage without vLLM."""
    settings = stage.settings
    if stage.kind == "rl":
        told = verl_keys.given(settings)
        key = f"{fit_rl.ROLLOUT}.max_model_len"
        prompt, response = (told[f"data.max_{part}_length"] for part in ("prompt", "response"))
        what = f"a prompt of {prompt} tokens (rl.verl.data.max_prompt_length) and a response of {response} (lengths)"
        return Window(f"rl.verl.{key}", _number(told.get(key)), fit_rl.longest(told), what)
    if stage.kind not in fit_vllm.KINDS:
        return None
    name = "evaluate.server: --max-model-len" if stage.kind == "evaluate" else "sample.engine.max_model_len"
    size, most = fit_vllm.told(stage).get("max-model-len"), settings["sampling"]["max_tokens"]
    return Window(name, _number(size), most + 1, f"a question and {most} tokens (sampling.max_tokens)")


def _number(size: object) -> int | None:
    """None for vLLM's other words (32k, auto, -1), which are for it to judge."""
    return int(str(size)) if str(size).isdecimal() else None


def check(stage: Stage, base: Path | None) -> None:
    """Raises UserError for lengths that don't go together. base: a model with the context of the stage's; None: not known."""
    seen = window(stage)
    if seen is None:
        return
    if stage.kind == "rl":
        _micro_batches(stage.settings, seen)
    if seen.tokens is not None and seen.tokens < seen.least:
        raise UserError(
            f"{seen.name}={seen.tokens} does not hold {seen.what}; raise it to {seen.least} or more, or lower those"
        )
    held, most = seen.tokens or seen.least, context(base) if base else None
    if most and held > most and not stage.settings["env"].get(LONGER):
        told = f"{seen.name}={held}" if seen.tokens else seen.what
        raise UserError(
            f"{told}: more than the model's context of {most} tokens (max_position_embeddings in {base}/config.json); lower it"
        )


def _micro_batches(settings: Mapping[str, Any], seen: Window) -> None:
    told, added = fit_rl.DEFAULTS | verl_keys.given(settings), verl_keys.flatten(settings["verl_add"])
    if not told.get(f"{fit_rl.ACTOR}.use_dynamic_bsz"):
        return
    wide = max(
        int(told.get(f"{fit_rl.ACTOR}.{part}ulysses_sequence_parallel_size") or 1) for part in ("", "fsdp_config.")
    )
    for key in (fit_rl.TOKENS, *LOG_PROBS, *([fit_rl.CRITIC_TOKENS] if rl_critic.wanted(told) else [])):
        if (tokens := told.get(key)) is not None and int(tokens) * wide < seen.least:
            name = f"rl.{'verl_add' if key in added else 'verl'}.{key}"
            rule = " (null: what the GPUs have room for)" if key in fit_rl.CHOSEN else ""
            raise UserError(
                f"{name}={tokens}: a micro-batch does not hold {seen.what}; raise it to {seen.least} or more{rule}, or lower "
                "those"
            )


def context(base: Path) -> int | None:
    """Tokens that the model is made for, as vLLM derives them; None where its config doesn't tell."""
    try:
        told = json.loads((base / "config.json").read_text())
        told |= told.get("text_config") or {}
        rope = told.get("rope_scaling") or told.get("rope_parameters") or {}
        most = int(told["max_position_embeddings"])
        if factor := rope.get("factor"):
            most = int(factor * (rope.get("original_max_position_embeddings") or most))
        return most
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

"""Make actor.freeze_vision_tower true: actor_rollout_ref.model.external_lib=verl_freeze_vision.

verl 0.9.1 reads the key into its dataclass and never uses it (its 0.6 and 0.7 workers did). With this module loaded,
`true` excludes the vision tower and its merger (the connector to the language model) from training by the FSDP engine;
with `false` nothing changes. verl imports external_lib before it builds the actor's config, so that the key can be
carried from there to the engine.
"""

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

# A component of a parameter's name that says vision, by family: Qwen-VL; LLaVA, InternVL, Gemma; their connectors.
VISION_PARTS = frozenset({"visual", "vision_tower", "vision_model", "multi_modal_projector", "mlp1"})
_MARK = "synergy_freeze_vision"


def freeze_vision(module: torch.nn.Module) -> int:
    """Exclude the vision tower and the connector of `module` from training; how many tensors that are.

    Raises ValueError when there is none, as freezing was asked for.
    """
    found = [value for name, value in module.named_parameters() if VISION_PARTS & set(name.split("."))]
    if not found:
        raise ValueError("freeze_vision_tower is true, but the model has no vision tensors; set it to false")
    for value in found:
        value.requires_grad_(False)
    return len(found)


def _hook_engine() -> None:
    """Let FSDPEngine freeze what it has built, where its config carries the mark. Imports the engine."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    stock = FSDPEngine._build_module
    if getattr(stock, _MARK, False):
        return

    def build_module(self: Any) -> torch.nn.Module:
        module = stock(self)
        config = self.engine_config
        if getattr(config, _MARK, False) and not config.forward_only:
            if config.strategy == "fsdp" and not config.use_orig_params:
                raise ValueError("actor.freeze_vision_tower needs strategy=fsdp2 or fsdp_config.use_orig_params=true")
            logger.warning("vision tower and merger frozen: %d tensors", freeze_vision(module))
        return module

    setattr(build_module, _MARK, True)
    FSDPEngine._build_module = build_module


def install() -> None:
    """Carry the key from the actor's config to its engine, which sees only its own part of that config. Idempotent."""
    from verl.workers.config.actor import FSDPActorConfig

    stock = FSDPActorConfig.__post_init__
    if getattr(stock, _MARK, False):
        return

    def post_init(self: Any) -> None:
        stock(self)
        if self.freeze_vision_tower:
            object.__setattr__(self.engine, _MARK, True)
            _hook_engine()

    setattr(post_init, _MARK, True)
    FSDPActorConfig.__post_init__ = post_init


install()

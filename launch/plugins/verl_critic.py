"""PPO's critic for a vision-language model: critic.model._target_=verl_critic.CriticModelConfig.

verl 0.9.1 builds it from the policy's weights and trl 0.24's value head (transformers 5.5.4 has no token classifier for
Qwen2.5-VL). Three things keep that from working here, and have no key:
* verl's load_valuehead_model asks for flash attention whatever critic.model.override_config says;
* there is no freeze_vision_tower for a critic; it is a field of our config class;
* verl's fused kernels are set on the model's class, for the critic too where it shares the policy's process. They give no
  logits, which trl's forward pass asks for. Nobody needs a critic's: the model below the value head makes none, which also
  saves their time and memory (151,936 a token).

verl imports critic.model.external_lib in its task runner alone. A config class of ours is pickled by name instead, so
that every worker that gets a critic's config imports this module, and with it the change below.
"""

import logging
import types
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLCausalLMOutputWithPast
from verl.utils import model as verl_model
from verl.workers.config import HFModelConfig
from verl_freeze_vision import freeze_vision

logger = logging.getLogger(__name__)

_FREEZE = "synergy_freeze_vision"


@dataclass
class CriticModelConfig(HFModelConfig):
    """verl's model config, with a key that excludes the critic's vision tower and merger from training."""

    freeze_vision_tower: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        setattr(self.hf_config, _FREEZE, self.freeze_vision_tower)  # the one part that load_valuehead_model is given


class _Body(AutoModelForImageTextToText):
    """The model below the value head, with its config's attention, as the policy has it."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("attn_implementation", None)
        module = super().from_pretrained(*args, **kwargs)
        if getattr(module.config, _FREEZE, False):
            logger.warning("vision tower and merger of the critic frozen: %d tensors", freeze_vision(module))
        module.forward = types.MethodType(_states, module)
        return module


def _states(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Qwen2_5_VLCausalLMOutputWithPast:
    """The model's forward pass, without its output layer. input_ids: (rows, tokens). Hidden states: (rows, tokens, size)."""
    from verl.models.transformers.qwen2_vl import qwen2_vl_forward

    last = qwen2_vl_forward(self, input_ids, **{**kwargs, "output_hidden_states": False})[0]
    return Qwen2_5_VLCausalLMOutputWithPast(logits=last[..., :0], hidden_states=(last,))


verl_model.AutoModelForVision2Seq = _Body

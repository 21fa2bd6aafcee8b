"""How RL fits into the memory of the GPUs and of their hosts, and the rule for verl's keys that are left at null.

verl trains float32 weights by default (model_dtype fp32); W is bytes of a weight, 4 or 2. Bytes on a GPU, shared out among all:

    states       W x 4 a trained parameter (weight, gradient, Adam's two moments), W a frozen one
    activations  of a micro-batch's tokens: 2 x hidden size x layers with gradient checkpointing, and the larger of LAYER x
                 hidden size for the layer that is computed again and memory.LOGITS x vocabulary, which verl's fused kernels
                 save; 4 a parameter of the embeddings, as FSDP gathers them, with their gradients
    root         after them, W a trained parameter while Adam steps: of all second moments at once, which a fused one saves
                 (`rl/paper`; 7B in float32 ended in it without, on a GPU of 150 GB)
    vLLM         gpu_memory_utilization of the GPU while it generates; it sleeps while the policy trains
    critic       of PPO, while it trains: as the policy, in float32 and without logits; away otherwise
    reference    W a parameter, where it stays on the GPU (launch/plugins/verl_reference.py)

Bytes of a host, of which it has the most while the reference model is loaded, or while the policy is saved:

    away         what is sent there: weights W, moments 2 W; the reference model's twice, as they are pinned (PINNED)
    loading      a whole model by each process that reads it: all of the node's, or the first where embeddings are not tied; and
                 a third copy of a reference model that is sent there (7B in float32: Ray ended it with 122 of 126 GB taken)
    saving       the whole policy by the first process
    critic       of PPO: weights 4, moments 8 a parameter, away (recipes/rl/paper.yaml)

The rule takes the first of these ways with which all stands in 92 % of the GPU, while vLLM generates and while policy and
critic train, and in 85 % of the host's memory: nothing away; the reference model away, which costs a start of the stage; then
Adam's moments, which costs each step; then the weights. Where none does, or the GPU is not known, all go.
tensor_model_parallel_size is the smallest power of two that divides a node's GPUs and with which vLLM's weights take at most
half of its share; 1 where the GPU is not known. A micro-batch holds ENOUGH tokens, or as many as there is room for then, but
always the longest prompt and response: so many where the GPU is not known. The reference model is loaded as its checkpoint
is: in bfloat16 it computes what it computes in float32, as FSDP casts weights before (launch/plugins/verl_positions.py;
tests/test_reference.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synergy.stages import rl_critic, verl_keys
from synergy.stages.memory import HOST_USABLE, LOGITS, USABLE, Cards, Model, Need

ACTOR, ROLLOUT, REFERENCE = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
ADAM = f"{ACTOR}.optim.override_optimizer_config"
"""Arguments of torch's AdamW; verl's YAML has no keys there."""
AWAY = (
    f"{REFERENCE}.fsdp_config.param_offload",
    f"{ACTOR}.fsdp_config.optimizer_offload",
    f"{ACTOR}.fsdp_config.param_offload",
)
"""In the order in which the rule sends them away."""
PARALLEL = f"{ROLLOUT}.tensor_model_parallel_size"
REFERENCE_DTYPE = f"{REFERENCE}.fsdp_config.model_dtype"
TOKENS = f"{ACTOR}.ppo_max_token_len_per_gpu"
CRITIC_TOKENS = "critic.ppo_infer_max_token_len_per_gpu"
"""Of a micro-batch, as above; verl 0.9.1 takes it in training too (trainer/ppo/v1/trainer_base.py)."""
DEFAULTS = {TOKENS: 16384, CRITIC_TOKENS: 32768}
"""verl's, where a recipe has no such key."""
CHOSEN = (*AWAY, PARALLEL, REFERENCE_DTYPE, TOKENS, CRITIC_TOKENS)
"""verl's keys that the rule fills in where they are null."""
ENOUGH = 20480
"""Tokens of a micro-batch with which the figures in benchmarks/results/h200.md were measured."""
SMALLER = 1024
"""Tokens by which the rule goes down from there."""
LAYER = 90
"""Bytes a token and unit of hidden size: what a layer's attention and MLP make (3B and 7B on an H200: 101 and 72)."""
FLOAT32 = ("fp32", "float32", "32")
"""verl's words for it (utils/torch_dtypes.py); its others are of two bytes."""
PINNED = 2
"""FSDP2 pins the shards that it makes, and again those that it loads; pinned memory isn't given back."""


def need(settings: Mapping[str, Any], of: Model, on: Cards) -> Need:
    """With the rule's choice where nothing is told."""
    told = verl_keys.given(settings)
    told = _either(told, chosen(told, of, on))
    training, critic, generating = _on_gpu(told, of, on)
    process = max(training, critic)
    return Need(_states(told, of, on) + _root(told, of, on), process, max(process, generating), _on_host(told, of, on))


def fused(told: Mapping[str, Any]) -> bool:
    """Whether Adam steps without a copy of what it works on."""
    return bool(told.get(f"{ADAM}.fused")) or told.get(f"{ADAM}.foreach") is False


def chosen(told: Mapping[str, Any], of: Model | None, on: Cards) -> dict[str, Any]:
    """The rule's values of CHOSEN. told: verl's keys, dotted."""
    away, wide, tokens = len(AWAY), 1, longest(told)
    dtype = "bf16" if of is not None and of.half else "fp32"
    told = _either(told, {REFERENCE_DTYPE: dtype})
    if of is not None and on.memory and on.count:
        ways = (_either(told, _sent(number) | _micro(tokens)) for number in range(len(AWAY) + 1))
        away = next((number for number, way in enumerate(ways) if _fits(way, of, on)), away)
        while 4 * of.whole > wide * _vllm(told, on) and on.per_node % (2 * wide) == 0:
            wide *= 2
        told = _either(told, _sent(away))
        tokens = next((more for more in range(ENOUGH, tokens, -SMALLER) if _holds(told, more, of, on)), tokens)
    return {**_sent(away), PARALLEL: wide, REFERENCE_DTYPE: dtype, **_micro(tokens)}


def longest(told: Mapping[str, Any]) -> int:
    """Tokens of the longest prompt and response."""
    return int(told["data.max_prompt_length"]) + int(told["data.max_response_length"])


def _micro(tokens: int) -> dict[str, int]:
    return {TOKENS: tokens, CRITIC_TOKENS: tokens}


def _holds(told: Mapping[str, Any], tokens: int, of: Model, on: Cards) -> bool:
    return max(_on_gpu(_either(told, _micro(tokens)), of, on)) <= USABLE * on.memory


def _either(told: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's values where verl's key is null; a key that is not there has verl's default."""
    return {**told, **{key: rule[key] for key, value in told.items() if value is None and key in rule}}


def _sent(count: int) -> dict[str, bool]:
    return {key: number < count for number, key in enumerate(AWAY)}


def _fits(told: Mapping[str, Any], of: Model, on: Cards) -> bool:
    """The policy trains on the GPU, whatever is sent away between: where it alone is too much, no way would be left."""
    training, critic, generating = _on_gpu(told, of, on)
    held = 0 if told.get(AWAY[0]) else training
    return max(held, critic, generating) <= USABLE * on.memory and (
        not on.host or _on_host(told, of, on) <= HOST_USABLE * on.host
    )


def _on_gpu(told: Mapping[str, Any], of: Model, on: Cards) -> tuple[int, int, int]:
    """While the policy trains, while the critic does, and while vLLM generates."""
    width, (reference, moments, policy) = _width(told, ACTOR), (not told.get(key) for key in AWAY)
    held = reference * _reference(told, of) // on.count
    idle = width * (2 * of.trained * moments + of.whole * policy) // on.count
    busy = max(_activations(told, of), _root(told, of, on))
    rest = idle + held
    return _states(told, of, on) + held + busy, rest + _critic(told, of, on), rest + _vllm(told, on)


def _on_host(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    width, (reference, moments, policy) = _width(told, ACTOR), (bool(told.get(key)) for key in AWAY)
    readers = on.per_node if of.tied else 1

    def here(size: int) -> int:
        return size * on.per_node // on.count

    weights, copy = here(policy * width * of.whole), here(reference * _reference(told, of))
    critic = here((4 + 8) * of.whole) if rl_critic.wanted(told) else 0
    loading = weights + readers * _reference(told, of) + (PINNED + 1) * copy
    running = weights + here(moments * 2 * width * of.trained) + PINNED * copy + width * of.whole
    return critic + max(readers * width * of.whole, loading, running)


def _states(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    return _width(told, ACTOR) * (4 * of.trained + of.frozen) // on.count


def _activations(told: Mapping[str, Any], of: Model) -> int:
    tokens = int(told.get(TOKENS, DEFAULTS[TOKENS]))
    if not told.get(f"{ACTOR}.use_dynamic_bsz"):
        tokens = int(told.get(f"{ACTOR}.ppo_micro_batch_size_per_gpu") or 1) * longest(told)
    return _of_tokens(tokens, max(LAYER * of.hidden, 0 if told.get(FUSED) else LOGITS * of.vocabulary), of)


def _of_tokens(tokens: int, last: int, of: Model) -> int:
    """Of a micro-batch. last: bytes a token of what is computed again or last."""
    embeddings = (1 if of.tied else 2) * of.vocabulary * of.hidden
    return tokens * (2 * of.hidden * of.layers + last) + 4 * embeddings


def _critic(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    if not rl_critic.wanted(told):
        return 0
    tokens = int(told.get(CRITIC_TOKENS, DEFAULTS[CRITIC_TOKENS]))
    return (16 * of.trained + 4 * of.frozen) // on.count + _of_tokens(tokens, LAYER * of.hidden, of)


def _root(told: Mapping[str, Any], of: Model, on: Cards) -> int:
    return 0 if fused(told) else _width(told, ACTOR) * of.trained // on.count


def _reference(told: Mapping[str, Any], of: Model) -> int:
    """Bytes of the whole reference model; 0 without one."""
    there = told.get(f"{ACTOR}.use_kl_loss") or told.get("algorithm.use_kl_in_reward")
    return _width(told, REFERENCE) * of.whole if there else 0


def _width(told: Mapping[str, Any], role: str) -> int:
    """Bytes of a weight; float32 where nothing is told."""
    return width(told.get(f"{role}.fsdp_config.model_dtype"))


def width(dtype: Any) -> int:
    """Bytes of a weight of verl's model_dtype; float32 where nothing is told."""
    return 4 if dtype is None or str(dtype) in FLOAT32 else 2


def _vllm(told: Mapping[str, Any], on: Cards) -> int:
    return int(float(told.get(f"{ROLLOUT}.gpu_memory_utilization", 0.5)) * on.memory)

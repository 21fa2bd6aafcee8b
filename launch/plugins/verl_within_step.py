r"""SFT and RL in one step: verl's advantage estimator `within_step` and its policy loss of the same name.

Written for verl 0.9.1, whose files stay as they are: both are registered by verl's own decorators
(trainer/ppo/core_algos.py). Rows and tokens for SFT come from `verl_within_rollout`; tests/test_within_step.py fails when
something that this relies on changes. With M verl's loss_agg_mode, q a mini-batch's questions and o_i their n rollouts,

    L = agg_M(vanilla loss on generated tokens) + beta * agg_M(KL on generated tokens) + agg_M(c * w * -log p on SFT tokens)

* SFT tokens are those of a trace that the policy did not generate: plain negative log-likelihood, no ratio, no clipping.
  They have response_mask 0, so that no KL, no entropy bonus and no advantage reaches them, and verl's own metrics don't
  count them. w: `sft_weight`.
* A whole trace stands in for c (`copies`) rows. Where it takes the place of a question's n wrong rollouts, c = n: the loss
  is that of the batch in which each wrong rollout is replaced by the trace, computed once. c = 1: one row among the others.
* agg_M is verl's agg_loss with verl's own global sizes, for both parts: token-mean divides by the generated tokens and c
  times the SFT tokens of the mini-batch (loss_mask holds c), the means over sequences by its mini-batch size times n rows.
* Advantages are GRPO's over the generated rollouts of a question; whole traces are in no mean and no deviation. Rollouts
  with a trace prefix and free ones are one group (`baseline: group`), or each compared with its like (`baseline: alike`).

How marks travel: verl hands the loss nothing but a handful of tensors, so an SFT token's advantage is c * w * MARK, a power
of two that scales without rounding and that no advantage comes near.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import (
    agg_loss,
    compute_grpo_outcome_advantage,
    compute_policy_loss_vanilla,
    register_adv_est,
    register_policy_loss,
)

NAME = "within_step"
MARK = 2.0**40
"""Advantages from MARK / 2**20 on are SFT weights times MARK."""
TRACE = "sft"
"""Begins the uid of a row that is a whole trace."""


def prefixed(response_mask: torch.Tensor) -> torch.Tensor:
    """(rows, tokens), true on the tokens before the first generated one, of rows that have one."""
    own = response_mask.bool()
    return (own.cumsum(-1) == 0) & own.any(-1, keepdim=True)


@register_adv_est(NAME)  # type: ignore[untyped-decorator]
def compute_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping[str, Any],
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO's advantages, and the marks of SFT tokens where response_mask is 0; and GRPO's own as returns.

    All tensors are (rows, tokens). index: the question's uid per row, beginning with TRACE for a whole trace. config: verl's
    `algorithm`, with `within_step: {sft_weight, copies, baseline}`.
    """
    told = config[NAME]
    given = prefixed(response_mask)
    groups = index
    if told["baseline"] == "alike":
        begun = given.any(-1).tolist()
        groups = np.array([f"{uid} begun" if so else uid for uid, so in zip(index, begun, strict=True)], dtype=object)
    by_std = config.get("norm_adv_by_std_in_grpo", True)
    advantages, returns = compute_grpo_outcome_advantage(
        token_level_rewards, response_mask, groups, norm_adv_by_std_in_grpo=by_std, config=config
    )
    traces = torch.tensor([str(uid).startswith(TRACE) for uid in index]).unsqueeze(-1).expand_as(given)
    weight = float(told["sft_weight"]) * MARK
    marked = advantages.masked_fill(given, weight).masked_fill(traces, weight * told["copies"])
    return marked, returns


@register_policy_loss(NAME)  # type: ignore[untyped-decorator]
def compute_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's vanilla loss on the generated tokens, negative log-likelihood on marked ones; verl's arguments and result.

    The metrics sft_nll and sft_tokens are sums over the micro-batch; verl means both over micro-batches and ranks, so that
    their ratio is the mean over the tokens.
    """
    sft = advantages >= MARK / 2**20
    loss, metrics = compute_policy_loss_vanilla(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages.masked_fill(sft, 0.0),
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    nll = 0.0
    if sft.any():
        weights = torch.where(sft, advantages / MARK, 0.0)
        loss = loss + agg_loss(-log_prob * weights, sft, loss_agg_mode, **config.global_batch_info)
        nll = -log_prob.detach()[sft].sum().item()
    return loss, {**metrics, "actor/sft_nll": nll, "actor/sft_tokens": float(sft.sum().item())}

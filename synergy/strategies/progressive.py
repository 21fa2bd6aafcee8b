"""progressive: long traces first, then ever less of them (paper, progressive section; Table 6), alternating by rounds.

A question that the model never solves (zero-pass) gets its external trace: in the first round all of it, as SFT alone; then a
shrinking prefix, on which SFT runs with a small weight while GRPO trains what the policy writes after it; in the last round
nothing. All other questions take plain GRPO in every round. Over all rounds each question is seen as often as in plain RL.

The paper mixes both losses inside a step; by rounds the two frameworks take turns. The SFT weight multiplies the learning
rate: Adam divides by the gradient's own size, so scaling the loss of a stage that has no other loss would change nothing.
Optimizer states start anew at every switch; the learning rates go on, as SFT has one schedule over its rounds, and RL another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import base, blocks

SCHEDULES = ("linear", "cosine", "step")
UNITS = ("tokens", "sentences")


@dataclass(frozen=True)
class Knobs:
    rounds: int = 3
    schedule: str = "linear"
    sft_weight: float = 0.2
    prefix_unit: str = "tokens"
    prefix_rollouts: int | None = None


def prefix_share(schedule: str, index: int, rounds: int) -> float:
    """Share of the trace given in round ``index`` (0-based): 1 in the first, 0 in the last, falling in between."""
    done = index / (rounds - 1)
    if schedule == "linear":
        share = 1 - done
    elif schedule == "cosine":
        share = (1 + math.cos(math.pi * done)) / 2
    else:  # step: all of it in the first half of the rounds, then nothing
        share = 1.0 if done < 0.5 else 0.0
    return round(share, 4)


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if knobs.rounds < 2:
        raise UserError(f"recipe.rounds={knobs.rounds}: progressive needs two rounds or more; one round is recipe=rl")
    blocks.check_rounds(cfg, knobs.rounds)
    if knobs.schedule not in SCHEDULES or knobs.prefix_unit not in UNITS:
        raise UserError(f"recipe.schedule is one of {SCHEDULES}, recipe.prefix_unit one of {UNITS}")
    planned = [*base.stages(cfg, base.Knobs()), blocks.train_data(cfg)]
    planned.append(blocks.round_data(cfg, "order", "data"))
    note = "which questions the base model never solves"
    planned.append(blocks.sample(cfg, "passes", blocks.BASE, "data", "order", note))
    model, passes = blocks.BASE, ["passes"]
    shares = [prefix_share(knobs.schedule, index, knobs.rounds) for index in range(knobs.rounds)]
    sft_rounds = sum(share > 0 for share in shares)  # the first ones, as shares fall
    for index, share in enumerate(shares):
        number = index + 1
        mix = blocks.round_data(
            cfg,
            f"mix-{number}",
            "data",
            passes if share else (),
            index,
            knobs.rounds,
            share,
            knobs.prefix_unit,
            knobs.prefix_rollouts,
            carry=f"mix-{index}" if index else None,
            note=f"zero-pass questions get {share:.0%} of their trace",
        )
        planned.append(mix)
        if share > 0:
            note = "whole traces of zero-pass questions" if share == 1 else "trace prefixes of zero-pass questions"
            planned.append(
                blocks.sft(
                    cfg,
                    f"sft-{number}",
                    model,
                    mix.name,
                    note,
                    knobs.sft_weight,
                    open_ended=share < 1,
                    part=(index, sft_rounds),
                )
            )
            model = f"sft-{number}"
        note = (
            "GRPO on the rest" if share == 1 else "GRPO, from the prefix on" if share > 0 else "GRPO on all questions"
        )
        planned.append(blocks.rl(cfg, f"rl-{number}", model, mix.name, note, cfg.lengths.rl, (index, knobs.rounds)))
        model = f"rl-{number}"
        passes = [*passes, model]
    return [*planned, blocks.evaluate(cfg, model)]

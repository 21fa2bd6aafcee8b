"""progressive: long traces first, then ever less of them (paper, progressive section; Table 6), alternating by rounds.

A question that the model never solves (zero-pass) gets its external trace: in the first round all of it, as SFT alone; then a
shrinking prefix, on which SFT runs with a small weight while GRPO trains what the policy writes after it; in the last round
nothing. All other questions take plain GRPO in every round. Over all rounds each question is seen as often as in plain RL.

The paper mixes both losses inside a step. So does ``granularity: step``: one RL stage whose rollouts of zero-pass questions
begin with a prefix that shrinks from step to step; SFT runs on the prefix, GRPO on what follows. By rounds the two frameworks
take turns. There the SFT weight multiplies the learning
rate: Adam divides by the gradient's own size, so scaling the loss of a stage that has no other loss would change nothing.
Optimizer states start anew at every switch; the learning rates go on, as SFT has one schedule over its rounds, and RL another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from synergy import ranges
from synergy.config import Config
from synergy.data.shares import SCHEDULES, prefix_share
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import base, blocks, within_step

UNITS = ("tokens", "sentences")


@dataclass(frozen=True)
class Knobs:
    granularity: str = "round"
    rounds: int = field(default=3, metadata=within_step.ROUND)
    schedule: str = "linear"
    sft_weight: float = ranges.number(0.2, least=0, most=1e5, above=True)
    prefix_unit: str = "tokens"
    prefix_rollouts: int | None = ranges.number(None, least=0)
    baseline: str = field(default="group", metadata=within_step.STEP)


def _counted(cfg: Config) -> list[Stage]:
    """The base model's evaluation, the data, and which of its questions the base model never solves."""
    note = "which questions the base model never solves"
    order, passes = (
        blocks.round_data(cfg, "order", "data"),
        blocks.sample(cfg, "passes", blocks.BASE, "data", "order", note),
    )
    return [*base.stages(cfg, base.Knobs()), blocks.train_data(cfg), order, passes]


def _within_step(cfg: Config, knobs: Knobs) -> list[Stage]:
    prefix = {"schedule": knobs.schedule, "unit": knobs.prefix_unit}
    note = "zero-pass questions with a prefix of their trace, from all of it in the first step to none in the last"
    return [
        *_counted(cfg),
        within_step.data(cfg, "prefixed", note, ["passes"], prefix, knobs.prefix_rollouts),
        within_step.rl(
            cfg,
            "progressive",
            "prefixed",
            "GRPO from the prefix on, and SFT on the prefix, in the same steps",
            sft_weight=knobs.sft_weight,
            copies=knobs.prefix_rollouts,
            baseline=knobs.baseline,
            pass_rate=0.0,
            begun=True,
        ),
        blocks.evaluate(cfg, "progressive"),
    ]


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if knobs.schedule not in SCHEDULES or knobs.prefix_unit not in UNITS:
        raise UserError(f"recipe.schedule is one of {SCHEDULES}, recipe.prefix_unit one of {UNITS}")
    if within_step.wanted(knobs):
        return _within_step(cfg, knobs)
    if knobs.rounds < 2:
        raise UserError(f"recipe.rounds={knobs.rounds}: progressive needs two rounds or more; one round is recipe=rl")
    blocks.check_rounds(cfg, knobs.rounds)
    planned = _counted(cfg)
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

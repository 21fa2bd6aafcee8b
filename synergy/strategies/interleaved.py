"""interleaved: SFT on the questions that the model never solves, RL on the rest (paper, interleaved section; Table 6).

The paper mixes both losses inside a step. So does ``granularity: step``: GRPO on all questions, and where the rollouts of a
step have at most ``pass_rate`` right ones, SFT on the trace in their place.

By rounds the two frameworks take turns. Each round is a slice of plain RL's order of questions: those whose newest pass count
is zero get SFT on their whole trace, then GRPO runs on the others, and its rollouts are the pass counts of the rounds after it.
A question without a count goes to RL: in the first round all do, unless the base model was sampled first. Optimizer states
start anew at every switch; the learning rates go on, as SFT has one schedule over all of its rounds, and RL another.

Ablation (``sft_on: all``): SFT sees the traces of all questions, of the round or the step; what RL sees stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from synergy import ranges
from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import base, blocks, within_step

SFT_ON = ("zero_pass", "all")
TRACE_COUNTS = ("rollouts", "one")


@dataclass(frozen=True)
class Knobs:
    granularity: str = "round"
    rounds: int = field(default=3, metadata=within_step.ROUND)
    sft_on: str = "zero_pass"
    sft_weight: float = ranges.number(1.0, least=0, most=1e5, above=True)
    sft_epochs: float = field(default=1.0, metadata=within_step.ROUND)
    sample_first: bool = field(default=True, metadata=within_step.ROUND)
    pass_rate: float = field(default=0.0, metadata=within_step.STEP)
    trace_counts: str = field(default="rollouts", metadata=within_step.STEP)
    sft_buffer: int = field(default=0, metadata=within_step.STEP)


def _within_step(cfg: Config, knobs: Knobs) -> list[Stage]:
    _check_sft_on(knobs)
    every = knobs.sft_on == "all"
    if every and (knobs.pass_rate or knobs.sft_buffer):
        raise UserError(
            "recipe.sft_on=all gives every question its SFT in its own step: leave recipe.pass_rate and recipe.sft_buffer at 0"
        )
    note = "GRPO; in each step SFT on the traces of questions without a right rollout"
    if knobs.trace_counts not in TRACE_COUNTS:
        raise UserError(f"recipe.trace_counts={knobs.trace_counts!r} is one of {', '.join(TRACE_COUNTS)}")
    return [
        *base.stages(cfg, base.Knobs()),
        blocks.train_data(cfg),
        within_step.data(cfg, "traced", "questions in RL's order, each with its trace", every=every),
        within_step.rl(
            cfg,
            "interleaved",
            "traced",
            "GRPO, and SFT on the traces of all questions, in the same steps" if every else note,
            sft_weight=knobs.sft_weight,
            copies=None if knobs.trace_counts == "rollouts" and not every else 1,
            baseline="group",
            pass_rate=knobs.pass_rate,
            begun=False,
            every=every,
            buffer=knobs.sft_buffer,
        ),
        blocks.evaluate(cfg, "interleaved"),
    ]


def _check_sft_on(knobs: Knobs) -> None:
    if knobs.sft_on not in SFT_ON:
        raise UserError(f"recipe.sft_on={knobs.sft_on!r} is one of {', '.join(SFT_ON)}")


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if within_step.wanted(knobs):
        return _within_step(cfg, knobs)
    if knobs.rounds < 1:
        raise UserError(f"recipe.rounds={knobs.rounds}: interleaved needs a round or more")
    _check_sft_on(knobs)
    if knobs.rounds == 1 and not knobs.sample_first and knobs.sft_on == "zero_pass":
        raise UserError("recipe.rounds=1 without recipe.sample_first=true is recipe=rl: no pass count is known in time")
    if knobs.sft_epochs <= 0:
        raise UserError(f"recipe.sft_epochs={knobs.sft_epochs}: SFT needs more than no epoch")
    blocks.check_rounds(cfg, knobs.rounds)
    planned = [*base.stages(cfg, base.Knobs()), blocks.train_data(cfg)]
    model, passes = blocks.BASE, list[str]()
    if knobs.sample_first:
        planned.append(blocks.round_data(cfg, "order", "data"))
        note = "which questions the base model never solves"
        planned.append(blocks.sample(cfg, "passes", blocks.BASE, "data", "order", note))
        passes.append("passes")
    untold = 0 if knobs.sample_first or knobs.sft_on == "all" else 1  # rounds without SFT: no pass count is known yet
    for number in range(1, knobs.rounds + 1):
        mix = blocks.round_data(
            cfg,
            f"mix-{number}",
            "data",
            passes,
            number - 1,
            knobs.rounds,
            prefix=1.0,
            sft_on=knobs.sft_on,
            carry=f"mix-{number - 1}" if number > 1 else None,
            note="which questions SFT takes, and which RL",
        )
        planned.append(mix)
        if passes or knobs.sft_on == "all":
            note = "whole traces of " + ("all questions" if knobs.sft_on == "all" else "zero-pass questions")
            planned.append(
                blocks.sft(
                    cfg,
                    f"sft-{number}",
                    model,
                    mix.name,
                    note,
                    knobs.sft_weight,
                    part=(number - 1 - untold, knobs.rounds - untold),
                    num_train_epochs=knobs.sft_epochs,
                )
            )
            model = f"sft-{number}"
        note = "GRPO on the rest" if passes else "GRPO on all questions: no pass count is known yet"
        planned.append(
            blocks.rl(cfg, f"rl-{number}", model, mix.name, note, cfg.lengths.rl, (number - 1, knobs.rounds))
        )
        model = f"rl-{number}"
        passes = [*passes, model]
    return [*planned, blocks.evaluate(cfg, model)]

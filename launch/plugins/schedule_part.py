"""Round k of R of one learning-rate schedule: what `synergy_llamafactory` and `verl_schedule_part` both do.

Why: a recipe in rounds starts its frameworks once per round, and each start would run a warm-up and a decay of its own;
neither framework has an option that begins a schedule in the middle. SYNERGY_SCHEDULE_PART=k/R, the share of the
schedule that earlier rounds have run, has this one run the part from k/R to (k+1)/R.
How: a round of n steps gets the schedule of R·n steps, read from step k·n on. So the learning rate goes on at a border
in shares of the whole, even where rounds differ in their number of steps. Only the rate does: the optimizer's own state
starts anew in every round.
Resume needs nothing more: the scheduler's saved state is a step of the round, and the factor is found from that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VARIABLE = "SYNERGY_SCHEDULE_PART"


@dataclass(frozen=True)
class Part:
    """Round `index`, from 0, of `rounds`."""

    index: int
    rounds: int

    def whole(self, steps: int) -> int:
        """Steps of the schedule whose part takes `steps`."""
        return self.rounds * steps

    def start(self, steps: int) -> int:
        """The step of that schedule with which the part begins."""
        return self.index * steps


def read() -> Part | None:
    """The part that the environment names; None for a whole schedule. Raises ValueError for what is no k/R."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    index, _, rounds = text.partition("/")
    if not (index.isdecimal() and rounds.isdecimal() and int(index) < int(rounds)):
        raise ValueError(f"{VARIABLE}={text}: k/R is wanted, with k from 0 to R-1")
    return Part(int(index), int(rounds))


def later(factor: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """The factor on the learning rate, read so many steps later."""
    return lambda step: factor(step + steps)


def begin(scheduler: Any, steps: int) -> Any:
    """A LambdaLR like this new one, whose first step is the given one. Raises TypeError for other schedulers."""
    from torch.optim.lr_scheduler import LambdaLR

    if not isinstance(scheduler, LambdaLR):
        raise TypeError(f"{VARIABLE}: {type(scheduler).__name__} is no function of the step, and has no parts")
    return LambdaLR(scheduler.optimizer, [later(factor, steps) for factor in scheduler.lr_lambdas])

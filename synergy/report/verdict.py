"""Whether a number of ours agrees with the paper's, and where the two can't be compared at all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from synergy.config import Config

WITHIN, ABOVE, BELOW, APART = "within", "above", "below", "not comparable: "
MODEL = re.compile(r"qwen2[._]5-vl-7b", re.IGNORECASE)
RUNS = 4
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 24576}
"""How the paper evaluates (its section on evaluation): 24k new tokens, mean of four runs."""
QUESTIONS, QUESTIONS_OF_S1, TOLERANCE = 34_000, 1_000, 0.05
"""Training questions of Eureka-Distill and of both s1 sets, which the paper tells in thousands, and how far ours may be off."""
Ends = tuple[float | None, float | None]


def verdict(ours: float | None, paper: float | None, ends: Sequence[Ends], error: float = 0.0, why: str = "") -> str:
    """``within`` if any of our intervals holds the paper's value, else ``above`` or ``below`` it; or ``not comparable: why``.

    ends: our intervals, over questions or between seeds; one with an end that is None or not finite says nothing. error: how
    far the paper's value may be off, by rounding or by reading a picture. why: what sets the two apart; it goes before all.
    """
    if why:
        return APART + why
    if ours is None or not math.isfinite(ours):
        return APART + "no number here"
    if paper is None or not math.isfinite(paper):
        return APART + "the paper prints none"
    known = [(low, high) for low, high in ends if low is not None and high is not None and math.isfinite(high - low)]
    if not known:
        return APART + "no interval here"
    if any(low - error <= paper <= high + error for low, high in [*known, (ours, ours)]):
        return WITHIN
    return ABOVE if ours > paper else BELOW


def apart(cfg: Config) -> str:
    """What sets a config apart from the paper's experiment, the weightiest reason; '' for nothing that a config can tell."""
    ev = cfg.evaluate
    if "lab" in (cfg.model.path, cfg.data.source):
        return "another scale"
    if not MODEL.search(cfg.model.path):
        return "another model"
    if cfg.data.limit is not None:
        return "other data"
    if cfg.reward.path is not None:
        return "another reward"
    other = [name for name, value in SAMPLING.items() if getattr(ev.sampling, name) != value]
    if other:
        return f"other sampling ({', '.join(other)})"
    return "fewer runs" if ev.runs < RUNS else ""


def other_data(recipe: str, questions: int) -> str:
    """What sets the training questions of a recipe apart from the paper's, as far as their number tells."""
    wanted = QUESTIONS_OF_S1 if recipe.startswith("ablation/sft_s1") else QUESTIONS
    return "" if abs(questions / wanted - 1) <= TOLERANCE else f"other data ({questions:,} training questions)"

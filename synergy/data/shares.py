"""How much of an external trace is given: from all of it at the beginning to none at the end (paper, progressive section)."""

from __future__ import annotations

import math

SCHEDULES = ("linear", "cosine", "step")


def prefix_share(schedule: str, index: int, count: int) -> float:
    """Share of the trace given in round or step ``index`` (0-based) of ``count``: 1 in the first, 0 in the last, falling in
    between. The paper does not state the schedule."""
    done = index / max(1, count - 1)
    if schedule == "linear":
        share = 1 - done
    elif schedule == "cosine":
        share = (1 + math.cos(math.pi * done)) / 2
    else:  # step: all of it in the first half, then nothing
        share = 1.0 if done < 0.5 else 0.0
    return round(share, 4)

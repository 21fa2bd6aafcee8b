"""Synergy: which way of combining long chain-of-thought SFT and RL helps, where, and at what length."""

import sys

from synergy import paths

__version__ = "0.1.0"

if not paths.CHECKOUT:  # a wheel: reward_fns lies in there
    sys.path.append(str(paths.ROOT))

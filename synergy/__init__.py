"""Synergy: which way of combining long chain-of-thought SFT and RL helps, where, and at what length."""

import os
import sys

__version__ = "0.1.0"

if os.path.isdir(_files := os.path.join(os.path.dirname(__file__), "_files")):  # a wheel: reward_fns lies in there
    sys.path.append(_files)

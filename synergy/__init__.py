"""Synergy: which way of combining long chain-of-thought SFT and RL helps, where, and at what length."""

__version__ = "0.1.0"

"""The answer checker and the reward functions: one judge for RL, sampling and evaluation. Imports no torch."""

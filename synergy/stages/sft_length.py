"""How long SFT trains: ``max_steps`` of LLaMA-Factory where it is set, which goes before ``num_train_epochs`` (transformers'
Trainer, _inner_training_loop)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synergy.stages import sft_spread

DEFAULT = 3.0
"""Epochs, where the config names none (transformers' TrainingArguments)."""


def epochs(config: Mapping[str, Any]) -> float:
    """As the config has them, whether they decide or not."""
    return float(config.get("num_train_epochs", DEFAULT))


def most(config: Mapping[str, Any]) -> int:
    """Steps by max_steps; 0 where epochs decide."""
    return max(0, int(config.get("max_steps", -1)))


def steps(settings: Mapping[str, Any], rows: float) -> float:
    """Optimizer steps over so many rows."""
    config = settings["config"]
    return float(most(config) or math.ceil(rows / _batch(settings)) * epochs(config))


def rows_seen(settings: Mapping[str, Any], rows: float) -> float:
    """Rows that all steps see together."""
    config = settings["config"]
    return float(told * _batch(settings)) if (told := most(config)) else rows * epochs(config)


def _batch(settings: Mapping[str, Any]) -> int:
    return int(settings["batch"] or sft_spread.at_a_time(settings["config"]) * sft_spread.accumulation(settings))

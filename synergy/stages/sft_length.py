"""How long SFT trains: ``max_steps`` of LLaMA-Factory where it is set, which goes before ``num_train_epochs`` (transformers'
Trainer, _inner_training_loop). And over how many processes its rows are tokenized beforehand, where the recipe leaves that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synergy.stages import sft_spread

DEFAULT = 3.0
"""Epochs, where the config names none (transformers' TrainingArguments)."""
WORKERS = "preprocessing_num_workers"
MOST_WORKERS = 16
WORKER_SECONDS, ROW_SECONDS = 2.0, 0.05
"""To hand a process the tokenizer (3 s on the host of benchmarks/results/h200.md, 1.7 on two cores of another), and for a row:
0.013 with a picture of 448 x 448, 0.1 of 1000 x 1000."""


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


def workers(rows: float, cores: int) -> int:
    """Processes that tokenize the rows. Each is handed the whole tokenizer, one after the other (datasets, Dataset.map): n of
    them take WORKER_SECONDS x n + ROW_SECONDS x rows / n, least at the root of what these are to each other."""
    return max(1, min(math.isqrt(int(rows * ROW_SECONDS / WORKER_SECONDS)), cores, MOST_WORKERS))

"""A part of a learning-rate schedule in verl (see `schedule_part`): VERL_USE_EXTERNAL_MODULES=…,verl_schedule_part.

verl 0.9.1 builds the scheduler of actor and critic in FSDPEngine._build_lr_scheduler (workers/engine/fsdp/
transformer_impl.py), from optim.total_training_steps, which the trainer sets to the steps of this run. `install` gives
that function the steps of the whole schedule, and shifts what it builds. Why not by model.external_lib: the worker of a
critic is given finished config objects, and imports none. verl imports this module while it is itself being imported,
so the engine is changed when somebody imports it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import schedule_part

ENGINE = "verl.workers.engine.fsdp.transformer_impl"


def install(engine: Any, part: schedule_part.Part) -> None:
    """Has an engine class run a part of its schedule."""
    stock = engine._build_lr_scheduler

    def build_lr_scheduler(self: Any, optimizer: Any) -> Any:
        config = self.optimizer_config
        steps = config.total_training_steps
        self.optimizer_config = dataclasses.replace(config, total_training_steps=part.whole(steps))
        try:
            scheduler = stock(self, optimizer)
        finally:
            self.optimizer_config = config
        return schedule_part.begin(scheduler, part.start(steps))

    engine._build_lr_scheduler = build_lr_scheduler


class Finder:
    """Meta path finder for the engine's module alone: it is loaded as ever, then changed."""

    def __init__(self, part: schedule_part.Part) -> None:
        self.part = part

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != ENGINE:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            install(module.FSDPEngine, self.part)

        spec.loader.exec_module = exec_module
        return spec


if part := schedule_part.read():
    sys.meta_path.insert(0, Finder(part))

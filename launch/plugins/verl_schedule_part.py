"""A part of a learning-rate schedule in verl (see `schedule_part`): VERL_USE_EXTERNAL_MODULES=…,verl_schedule_part.

verl 0.9.1 builds the scheduler of actor and critic in FSDPEngine._build_lr_scheduler (workers/engine/fsdp/
transformer_impl.py), from optim.total_training_steps, which the trainer sets to the steps of this run. `install` gives
that function the steps of the whole schedule, and shifts what it builds. Why not by model.external_lib: the worker of a
critic is given finished config objects, and imports none. verl imports this module while it is itself being imported,
so the engine is changed when somebody imports it.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import schedule_part
from after_import import after_import

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


def _change(module: Any, part: schedule_part.Part) -> None:
    install(module.FSDPEngine, part)


if part := schedule_part.read():
    after_import(ENGINE, partial(_change, part=part))

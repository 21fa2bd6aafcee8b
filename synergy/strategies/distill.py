"""distill: a model teaches itself. It answers every question several times, and what it got right becomes a data set (paper,
section on data: how Eureka-Distill was made).

The teacher is an SFT model: on a file of long traces beside the training questions (``traces``; the paper: s1.1, whose stages
are those of recipe=ablation/sft_s1_1 if data.validation, data.limit and the epochs agree), or on the traces that the training
questions bring, and then it is the model of recipe=sft. It ends with a folder of records, images and a card.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synergy.config import Config
from synergy.errors import UserError
from synergy.stages import Stage
from synergy.strategies import blocks


@dataclass(frozen=True)
class Knobs:
    traces: str | None = None
    epochs: float | None = None
    select: list[Any] = field(default_factory=lambda: [{"keep": "shortest_correct"}])
    license: str | None = None


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if knobs.epochs is not None and knobs.epochs <= 0:
        raise UserError(f"recipe.epochs={knobs.epochs}: SFT needs more than no epoch")
    blocks.choosing(knobs.select)
    planned = [blocks.train_data(cfg)]
    taught = "data"
    if knobs.traces and knobs.traces != cfg.data.train:
        taught = "traces"
        planned.append(blocks.traces(cfg, taught, knobs.traces))
    native: dict[str, Any] = {} if knobs.epochs is None else {"num_train_epochs": knobs.epochs}
    note = "the teacher: SFT on long traces"
    other = {"select": knobs.select} | ({"license": knobs.license} if knobs.license else {})
    return [
        *planned,
        blocks.sft(cfg, "teacher", blocks.BASE, taught, note, choose=cfg.sft.choose, media=taught, **native),
        blocks.sample(cfg, "responses", "teacher", "data", "data", "the teacher answers every question"),
        blocks.mixture(cfg, "dataset", "data", "responses", "the data set that it makes", part="distill", **other),
    ]

"""tag: difficulty levels of a set of questions, by passes of 16 runs of the base model (paper, difficulty levels).

The questions are those of ``data.train``, a benchmark's or a training set's. Responses are drawn as an evaluation draws them,
with another seed: an evaluation must not be the one that defined its levels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from synergy.config import Config
from synergy.data.records import LEVEL_RUNS
from synergy.stages import Stage
from synergy.strategies import blocks


@dataclass(frozen=True)
class Knobs:
    instructed: bool = False
    seed: int = 1000


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    note = f"{LEVEL_RUNS} runs of the base model"
    runs = blocks.sample(
        cfg,
        "runs",
        blocks.BASE,
        "data",
        "data",
        note,
        n=LEVEL_RUNS,
        seed=knobs.seed,
        sampling=asdict(cfg.evaluate.sampling),
        instruction=cfg.data.instruction if knobs.instructed else None,
    )
    return [blocks.train_data(cfg), runs, blocks.levels("levels", "data", "runs", "records with passes and level")]

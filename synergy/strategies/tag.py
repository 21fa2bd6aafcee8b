"""tag: difficulty levels of a set of questions, by passes of 16 runs of the base model (paper, difficulty levels).

questions=train: those of ``data.train``; ends with a copy of the records with passes and level. questions=benchmarks: those of
``evaluate.benchmarks``, whatever their form, through the evaluation itself; ends with a file of passes for each, which
``evaluate.benchmarks.N.levels`` takes. Responses are drawn as an evaluation draws them, with another seed: an evaluation must
not be the one that defined its levels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from synergy.config import Config
from synergy.data.records import LEVEL_RUNS
from synergy.errors import UserError
from synergy.ranges import LARGEST_SEED, number
from synergy.stages import Stage
from synergy.strategies import blocks

QUESTIONS = ("train", "benchmarks")


@dataclass(frozen=True)
class Knobs:
    questions: str = "train"
    instructed: bool = False
    seed: int = number(1000, least=0, most=LARGEST_SEED)


def stages(cfg: Config, knobs: Knobs) -> list[Stage]:
    if knobs.questions not in QUESTIONS:
        raise UserError(f"recipe.questions={knobs.questions!r} is one of {', '.join(QUESTIONS)}")
    if knobs.questions == "benchmarks":
        answers = blocks.evaluate(cfg, blocks.BASE, knobs.instructed, runs=LEVEL_RUNS, seed=knobs.seed)
        note = "passes of every benchmark question"
        return [blocks.benchmarks(cfg, levelled=False), answers, blocks.benchmark_levels("levels", answers.name, note)]
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

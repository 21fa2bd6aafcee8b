"""Does the tiny scale learn? Long-CoT SFT and GRPO from the base model over three seeds: accuracy, length, reward, curves.

.envs/train/bin/python benchmarks/tiny_learns.py [recipes=sft,rl] [run.dir=runs] [figure=docs/tiny_learns.png] [overrides]

Runs the recipes with seeds 0, 1 and 2 (finished stages are reused), prints a table and draws the curves. RL is validated by
verl as it trains, on questions that it does not train on: the reward of a step is that of its own 16 questions, easy or hard.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from synergy import compose
from synergy.compose import Task
from synergy.driver import plan
from synergy.driver.plan import Plan
from synergy.report import history, results, sweep, sweep_page
from synergy.report.results import Answer

SEEDS = (0, 1, 2)
VALIDATION = [
    "rl.verl.trainer.val_before_train=true",
    "rl.verl.trainer.test_freq=6",
    "++rl.verl.actor_rollout_ref.rollout.val_kwargs={n: 4, temperature: 1.0, do_sample: true}",
]


Finished = Sequence[tuple[Task, Plan]]


def by_level(answers: Sequence[Answer], what: str) -> dict[int, float]:
    grouped = defaultdict(list)
    for answer in answers:
        if answer.level is not None:
            grouped[answer.level].append(float(getattr(answer, what)))
    return {level: mean(values) for level, values in sorted(grouped.items())}


def table(found: Finished) -> None:
    """Accuracy and response length over all questions, mean and standard deviation over seeds; GRPO's validation."""
    print(sweep_page.strategies(sweep.gather(found)).markdown())
    for task, todo in found:
        for curve in history.curves(todo, "rl"):
            for what in ("validation_reward", "validation_accuracy"):
                points = zip(*curve.points(what), strict=True)
                told = ", ".join(f"{value:.3f} (step {step})" for step, value in points)
                print(f"{task.name}, {curve.stage}: {what.replace('_', ' ')}: {told}")


def draw(found: Finished, file: Path) -> None:
    """Training curves of SFT and RL; accuracy and length per level, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"base": "#555555", "sft": "#0072B2", "rl": "#D55E00"}
    kinds = (("sft", "loss", "SFT loss"), ("rl", "validation_reward", "GRPO: reward on the validation split"))
    titles = [row for row in kinds if any(task.recipe == row[0] for task, _ in found)]
    count = len(titles) + 2
    figure, axes = plt.subplots(1, count, figsize=(3.8 * count, 3.4), constrained_layout=True)
    for axis, (kind, what, title) in zip(axes, titles, strict=False):
        for task, todo in (job for job in found if job[0].recipe == kind):
            seed = task.cfg.seed
            for curve in history.curves(todo, kind):
                axis.plot(*curve.points(what), color=colours[kind], alpha=0.4 + 0.3 * (seed == 0), label=f"seed {seed}")
        axis.set(title=title, xlabel="step")
    shown = {("base", SEEDS[0]): results.models(found[0][1])[0]}
    shown |= {(task.recipe, task.cfg.seed): results.models(todo)[-1] for task, todo in found}
    for axis, what, title in zip(
        axes[-2:], ("correct", "tokens"), ("accuracy", "response length, tokens"), strict=True
    ):
        for (recipe, seed), model in shown.items():
            points = by_level(model.answers, what)
            label = recipe if seed == SEEDS[0] else None
            axis.plot(list(points), list(points.values()), "o-", color=colours[recipe], label=label)
        axis.set(title=title, xlabel="level (1 easy, 5 hard)", xticks=range(1, 6))
        axis.legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    print(f"figure: {file}")


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    file, recipes = Path(words.pop("figure", "docs/tiny_learns.png")), words.pop("recipes", "sft,rl")
    extra = [f"{key}={value}" for key, value in words.items()]
    jobs = ["-m", f"recipe={recipes}", f"seed={','.join(map(str, SEEDS))}", *VALIDATION, *extra]
    subprocess.run([sys.executable, "-m", "synergy.run", *jobs], check=True)
    found = [(task, plan.of_config(task.cfg)) for task in compose.tasks(jobs)]
    table(found)
    draw(found, file)


if __name__ == "__main__":
    main(sys.argv[1:])

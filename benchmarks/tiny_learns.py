"""Does the tiny scale learn? Long-CoT SFT and GRPO from the base model over three seeds: accuracy, length, reward, curves.

.envs/train/bin/python benchmarks/tiny_learns.py [recipes=sft,rl] [run.dir=runs] [figure=docs/tiny_learns.png] [overrides]

Runs the recipes with seeds 0, 1 and 2 (finished stages are reused), prints a table and draws the curves. RL is validated by
verl as it trains, on questions that it does not train on: the reward of a step is that of its own 16 questions, easy or hard.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from synergy.driver import ledger
from synergy.driver.ledger import Entry

SEEDS = (0, 1, 2)
VALIDATION = [
    "rl.verl.trainer.val_before_train=true",
    "rl.verl.trainer.test_freq=6",
    "++rl.verl.actor_rollout_ref.rollout.val_kwargs={n: 4, temperature: 1.0, do_sample: true}",
]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def seed_of(entry: Entry) -> int:
    return int(entry.identity["settings"]["seed"])


def evaluations(root: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(model, seed) -> answers; the base model has seed 0."""
    entries = ledger.read(root / "ledger.jsonl")
    found = {}
    for entry in entries.values():
        if entry.kind == "evaluate":
            model = entry.name.removeprefix("eval-")
            made = entries.get(entry.identity["inputs"]["model"])
            if model == "base" or (made is not None and model == made.name and model in ("sft", "rl")):
                found[model, seed_of(made) if made else 0] = rows(root / entry.output / "results.jsonl")
    return found


def curves(root: Path, kind: str, figure: str) -> dict[int, list[tuple[int, float]]]:
    """Seed -> (step, figure) of the stage that bears its kind's name."""
    found = {}
    for entry in ledger.read(root / "ledger.jsonl").values():
        if entry.kind == entry.name == kind:
            metrics = rows((root / entry.output).parent / entry.figures["metrics"])
            found[seed_of(entry)] = [(row["step"], row[figure]) for row in metrics if figure in row]
    return found


def spread(values: Iterable[float], form: str = ".1f") -> str:
    known = list(values)
    return f"{mean(known):{form}} ± {stdev(known):{form}}" if len(known) > 1 else f"{mean(known):{form}}"


def by_level(answers: list[dict[str, Any]], what: str) -> dict[int, float]:
    grouped = defaultdict(list)
    for row in answers:
        grouped[row["level"]].append(float(row[what]))
    return {level: mean(values) for level, values in sorted(grouped.items())}


def table(root: Path, recipes: list[str]) -> None:
    """Accuracy and response length over all questions, mean and standard deviation over seeds."""
    found = evaluations(root)
    print("| model | seeds | accuracy | length (tokens) |\n|---|---|---|---|")
    for model in ("base", *recipes):
        runs = [answers for (name, _), answers in sorted(found.items()) if name == model]
        accuracy = spread(100 * mean(row["correct"] for row in answers) for answers in runs)
        print(f"| {model} | {len(runs)} | {accuracy} | {spread(mean(r['tokens'] for r in a) for a in runs)} |")
    for what in ("validation_reward", "validation_accuracy"):
        for seed, points in sorted(curves(root, "rl", what).items() if "rl" in recipes else ()):
            told = ", ".join(f"{value:.3f} (step {step})" for step, value in points)
            print(f"GRPO, seed {seed}, {what.replace('_', ' ')}: {told}")


def draw(root: Path, recipes: list[str], file: Path) -> None:
    """Training curves per recipe; accuracy and length per level, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"base": "#555555", "sft": "#0072B2", "rl": "#D55E00"}
    kinds = (("sft", "loss", "SFT loss"), ("rl", "validation_reward", "GRPO: reward on the validation split"))
    titles = [row for row in kinds if row[0] in recipes]
    count = len(titles) + 2
    figure, axes = plt.subplots(1, count, figsize=(3.8 * count, 3.4), constrained_layout=True)
    for axis, (kind, what, title) in zip(axes, titles, strict=False):
        for seed, points in sorted(curves(root, kind, what).items()):
            axis.plot(
                *zip(*points, strict=True), color=colours[kind], alpha=0.4 + 0.3 * (seed == 0), label=f"seed {seed}"
            )
        axis.set(title=title, xlabel="step")
    shown = {key: rows for key, rows in evaluations(root).items() if key[0] in ("base", *recipes)}
    for axis, what, title in zip(
        axes[-2:], ("correct", "tokens"), ("accuracy", "response length, tokens"), strict=True
    ):
        for (model, seed), answers in sorted(shown.items()):
            points = by_level(answers, what)
            axis.plot(
                list(points), list(points.values()), "o-", color=colours[model], label=model if seed == 0 else None
            )
        axis.set(title=title, xlabel="level (1 easy, 5 hard)", xticks=range(1, 6))
        axis.legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    print(f"figure: {file}")


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    root, file = Path(words.pop("run.dir", "runs")), Path(words.pop("figure", "docs/tiny_learns.png"))
    recipes = words.pop("recipes", "sft,rl").split(",")
    extra = [f"{key}={value}" for key, value in words.items()]
    seeds = ",".join(map(str, SEEDS))
    sweep = [
        sys.executable,
        "-m",
        "synergy.run",
        "-m",
        f"recipe={','.join(recipes)}",
        f"seed={seeds}",
        f"run.dir={root}",
        *VALIDATION,
        *extra,
    ]
    subprocess.run(sweep, check=True)
    table(root, recipes)
    draw(root, recipes, file)


if __name__ == "__main__":
    main(sys.argv[1:])

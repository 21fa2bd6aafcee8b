"""Rounds of 1, 2, 4, ... steps against mixing within the step: accuracy per level, length and time, same data and budget.

    .envs/train/bin/python benchmarks/granularity.py OUT [recipe=interleaved] [steps=16] [seeds=0,1,2] [every=1,2,4,8,16,step]
        [workers=1] [cores=2] [override ...]          # again: it continues
    .envs/train/bin/python benchmarks/granularity.py OUT [...] draw=true      # table and figure of what is there

every: how many steps of RL a round has; step: `recipe.granularity=step`. All arms see the same questions in the same order, and
a round its share of them. Runs lie in OUT/runs-N, one run directory per worker, which shares what its runs have in common; a
worker has ``cores`` cores. OUT/runs.jsonl has a line per run, OUT/granularity.md the table, OUT/granularity.png the figure.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from synergy import compose
from synergy.driver import plan
from synergy.report import form, results, style
from synergy.report.tables import Table

DEFAULTS = {
    "recipe": "interleaved", "steps": "16", "seeds": "0,1,2", "every": "1,2,4,8,16,step", "workers": "1", "cores": "2",
    "draw": "false",
}  # fmt: skip
TRAINED = ("prepare", "sample", "sft", "rl")
"""Kinds of stages whose time counts: all but evaluation, which every arm pays alike."""


def overrides(recipe: str, steps: int, every: str, seed: int) -> list[str]:
    """The command line of one arm. Raises SystemExit for steps that the rounds don't divide."""
    if every == "step":
        form = ["recipe.granularity=step"]
    elif steps % int(every):
        raise SystemExit(f"every={every} does not divide steps={steps}")
    else:
        form = [f"recipe.rounds={steps // int(every)}"]
    return [f"recipe={recipe}", f"budget.rl_steps={steps}", f"seed={seed}", *form]


def measure(words: list[str]) -> dict[str, Any]:
    """Level -> [right, of], response length and seconds per kind of stage of a finished run."""
    todo = plan.of_config(compose.tasks(words)[0].cfg)
    model = results.models(todo)[-1]
    levels: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for answer in model.answers:
        levels[answer.level or 0][0] += answer.correct
        levels[answer.level or 0][1] += 1
    seconds, count = Counter[str](), Counter[str]()
    for step in todo.steps:
        if step.entry is not None:
            seconds[step.stage.kind] += step.entry.seconds
            count[step.stage.kind] += 1
    return {
        "levels": {str(level): counts for level, counts in sorted(levels.items())},
        "length": mean(answer.tokens for answer in model.answers),
        "truncated": mean(answer.truncated for answer in model.answers),
        "seconds": {kind: round(value, 1) for kind, value in seconds.items()},
        "stages": dict(count),
    }


def work(number: int, cores: int, out: Path, jobs: queue.SimpleQueue[Any], lock: threading.Lock) -> None:
    """Take one job after the other. A run that fails is told and left out; the same command tries it again."""
    mine = sorted(os.sched_getaffinity(0))[number * cores : (number + 1) * cores]
    while True:
        try:
            job, words = jobs.get_nowait()
        except queue.Empty:
            return
        words = [*words, f"run.dir={out / f'runs-{number}'}"]
        with (out / f"log-{number}.txt").open("a") as log:
            command = ["taskset", "-c", ",".join(map(str, mine)), sys.executable, "-m", "synergy.run", *words]
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        with lock:
            if code:
                print(f"{job}: exit code {code}, see {log.name}", flush=True)
                continue
            row = {**job, **measure(words), "cores": len(mine)}
            with (out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{job}: {sum(row['seconds'].values()):.0f} s of stages", flush=True)


def run(out: Path, told: dict[str, str], extra: list[str], found: list[dict[str, Any]]) -> None:
    """All arms that are not there yet, the longest first."""
    done = {(row["recipe"], row["steps"], row["every"], row["seed"]) for row in found}
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for every, seed in itertools.product(told["every"].split(","), map(int, told["seeds"].split(","))):
        job = {"recipe": told["recipe"], "steps": int(told["steps"]), "every": every, "seed": seed}
        if tuple(job.values()) not in done:
            jobs.put((job, [*overrides(told["recipe"], job["steps"], every, seed), *extra]))
    lock = threading.Lock()
    workers = [
        threading.Thread(target=work, args=(number, int(told["cores"]), out, jobs, lock))
        for number in range(int(told["workers"]))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def accuracy(row: dict[str, Any], level: str | None = None) -> float:
    """Percent right, of one level or of all questions."""
    counts = [c for at, c in row["levels"].items() if level is None or at == level]
    return 100 * sum(right for right, _ in counts) / sum(of for _, of in counts)


def trained(row: dict[str, Any]) -> float:
    return sum(row["seconds"].get(kind, 0.0) for kind in TRAINED) / 60


def spread(values: Sequence[float]) -> str:
    return form.percent(mean(values), stdev(values) if len(values) > 1 else None)


def table(arms: dict[str, list[dict[str, Any]]]) -> str:
    """A row per arm: accuracy over all and per level, length, minutes; mean and standard deviation over seeds."""
    levels = sorted({level for rows in arms.values() for row in rows for level in row["levels"]})
    ends = ("length", "minutes of training")
    head = ("a round is", "seeds", "accuracy, %", *(f"level {level}" for level in levels), *ends)
    lines = []
    for every, rows in arms.items():
        name = "within the step" if every == "step" else f"{every} step{'s' * (every != '1')}"
        values = [[accuracy(r, level) for r in rows] for level in (None, *levels)]
        values += [[r["length"] for r in rows], [trained(r) for r in rows]]
        lines.append((name, str(len(rows)), *map(spread, values)))
    return Table(head, tuple(lines)).markdown()


def draw(arms: dict[str, list[dict[str, Any]]], recipe: str, file: Path) -> None:
    """Accuracy, accuracy per level, length and minutes over the steps of a round; the within-step form stands at the left."""
    with style.look():
        figure = style.figure(4.6)
        panels = figure.subplots(2, 2).flat
        levels = sorted({level for rows in arms.values() for row in rows for level in row["levels"]})
        names = ["within\nthe step" if every == "step" else every for every in arms]
        shown: list[tuple[str, Any]] = [
            ("accuracy over all questions, %", accuracy),
            ("mean response length, tokens", lambda row: row["length"]),
            ("minutes of training", trained),
        ]
        colour = style.RECIPES[recipe]
        for axis, (title, value) in zip(panels, shown, strict=False):
            for x, rows in enumerate(arms.values()):
                axis.plot([x] * len(rows), [value(r) for r in rows], "o", color=colour, alpha=0.45, markersize=4)
            axis.plot([mean(map(value, rows)) for rows in arms.values()], "-", color=colour, linewidth=1.3)
            axis.set_title(title)
            axis.set_xticks(range(len(names)), names)
        last = figure.axes[3]
        for at, level in enumerate(levels):
            shade = 0.35 + 0.65 * at / max(1, len(levels) - 1)
            points = [mean(accuracy(r, level) for r in rows) for rows in arms.values()]
            last.plot(points, "o-", color=colour, alpha=shade, markersize=3.5, linewidth=1.2)
            last.annotate(f" {level}", (len(points) - 1, points[-1]), fontsize=8, va="center")
        last.set_title("accuracy per level, 1 easy to 5 hard, %")
        last.set_xticks(range(len(names)), names)
        for axis in figure.axes[2:]:
            axis.set_xlabel("steps of RL in a round")
        style.save(figure, file)


def main(argv: list[str]) -> None:
    if not argv or "=" in argv[0] or argv[0].startswith("-"):
        raise SystemExit(__doc__)
    out, told, extra = Path(argv[0]).absolute(), dict(DEFAULTS), list[str]()
    for word in argv[1:]:
        key, _, value = word.partition("=")
        if key in told:
            told[key] = value
        else:
            extra.append(word)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "runs.jsonl"

    def found() -> list[dict[str, Any]]:
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    if told["draw"] != "true":
        run(out, told, extra, found())
    rows = [row for row in found() if (row["recipe"], row["steps"]) == (told["recipe"], int(told["steps"]))]
    order = ["step", *(every for every in told["every"].split(",") if every != "step")]
    arms = {every: rows_ for every in order if (rows_ := [row for row in rows if row["every"] == every])}
    if not arms:
        raise SystemExit(f"no finished run in {file}")
    (out / "granularity.md").write_text(table(arms) + "\n")
    draw(arms, told["recipe"], out / "granularity.png")
    print(table(arms))


if __name__ == "__main__":
    main(sys.argv[1:])

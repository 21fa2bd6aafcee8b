"""What a switch between frameworks costs, by part: from the last optimizer step of one to the first step of the next.

.envs/train/bin/python benchmarks/switch_cost.py [repeats=1]

Two small rounds of recipe=interleaved, in empty run directories, turn by turn: naive (every process starts cold, verl by its
own `python -m verl.trainer.main_ppo`) and warm (`run.warm`, the tiny scale's default). Seconds of wall time, read off the files
that the frameworks write and the lines that they log. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean

SMALL = (
    "recipe=interleaved", "recipe.rounds=2", "recipe.sft_on=all", "recipe.sample_first=false",
    "data.sizes={train: 64, val: 8, bench: 4}", "evaluate.runs=1",
    "budget.rl_steps=4", "rl.verl.data.train_batch_size=8", "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "rl.verl.actor_rollout_ref.rollout.n=4",
)  # fmt: skip
WAYS = {"naive": ("run.warm=false", "rl.module=verl.trainer.main_ppo"), "warm": ("run.warm=true",)}
READY = {"sft": "***** Running training *****", "rl": "ready to fit"}
IMPORTED = {"sft": "Process rank:", "rl": "ray init kwargs"}
"""Lines by which a framework tells that its model is ready, and that its libraries are imported."""
CHAIN = ("sft-1", "rl-1", "sft-2", "rl-2")
POLL_SECONDS = 0.02
Marks = dict[str, float]


class Watch(threading.Thread):
    """Notes when lines appear in the files of a run directory, as long as it is not told to stop."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.seen, self.over = root, dict[Path, list[tuple[float, str]]](), threading.Event()

    def run(self) -> None:
        offsets: dict[Path, int] = {}
        while not self.over.wait(POLL_SECONDS):
            for pattern in ("attempt-1/log.txt", "attempt-1/verl_metrics.jsonl", "work/out/trainer_log.jsonl"):
                for file in self.root.glob(f"stages/*/{pattern}"):
                    with file.open("rb") as stream:
                        stream.seek(offsets.get(file, 0))
                        new = stream.read()
                    offsets[file] = offsets.get(file, 0) + len(new)
                    lines = new.decode(errors="replace").splitlines()
                    self.seen.setdefault(file, []).extend((time.time(), line) for line in lines)

    def first(self, file: Path, text: str) -> float:
        return next(moment for moment, line in self.seen[file] if text in line)


def marks(watch: Watch, root: Path) -> dict[str, Marks]:
    """Stage -> moments: spawn, imported, first (its first step begins), last (its last step is done), ended, published."""
    found = {}
    for entry in map(json.loads, (root / "ledger.jsonl").read_text().splitlines()):
        if entry["name"] not in CHAIN:
            continue
        kind, folder = entry["kind"], (root / entry["output"]).parent
        log = folder / "attempt-1/log.txt"
        steps = watch.seen[folder / ("work/out/trainer_log.jsonl" if kind == "sft" else "attempt-1/verl_metrics.jsonl")]
        first = watch.first(log, READY["sft"]) if kind == "sft" else steps[0][0] - _seconds(steps[0][1])
        found[entry["name"]] = {
            "spawn": (folder / "attempt-1/command.sh").stat().st_mtime,
            "imported": watch.first(log, IMPORTED[kind]),
            "first": first,
            "last": max(moment for moment, line in steps if "loss" in line),
            "ended": (folder / "attempt-1/outcome.json").stat().st_mtime,
            "published": entry["started"] + entry["seconds"],
        }
    return found


def _seconds(metrics: str) -> float:
    return float(json.loads(metrics)["data"]["timing_s/step"])


def parts(before: Marks, after: Marks) -> dict[str, float]:
    """Seconds between the last step of one stage and the first of the next."""
    return {
        "last checkpoint, end of process": before["ended"] - before["last"],
        "verify, publish": before["published"] - before["ended"],
        "data of the next round": after["spawn"] - before["published"],
        "imports": after["imported"] - after["spawn"],
        "cluster, engines, model": after["first"] - after["imported"],
        "all": after["first"] - before["last"],
    }


def switches(way: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(kind of switch, its parts) of one run."""
    root = Path(tempfile.mkdtemp(prefix="synergy-switch-"))
    watch = Watch(root)
    watch.start()
    try:
        subprocess.run(
            [sys.executable, "-m", "synergy.run", f"run.dir={root}", "run.keep_work=true", *SMALL, *WAYS[way]],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        watch.over.set()
        watch.join()
        found = marks(watch, root)
        for one, other in pairwise(CHAIN):
            yield f"{one[:-2]} to {other[:-2]}".upper().replace("TO", "to"), parts(found[one], found[other])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main(argv: list[str]) -> None:
    repeats = int(dict(word.split("=", 1) for word in argv).get("repeats", 1))
    told: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(repeats):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            for switch, took in switches(way):
                told.setdefault((switch, way), []).append(took)
                print(f"{way}, {switch}: " + ", ".join(f"{name} {took[name]:.1f}" for name in took), flush=True)
    kinds = sorted({switch for switch, _ in told}, reverse=True)
    print("| seconds | " + " | ".join(f"{switch}, {way}" for switch in kinds for way in WAYS) + " |")
    print("|---|" + "---|" * len(kinds) * len(WAYS))
    mean_of = {key: {name: mean(row[name] for row in rows) for name in rows[0]} for key, rows in told.items()}
    for name in next(iter(mean_of.values())):
        print(
            f"| {name} | " + " | ".join(f"{mean_of[switch, way][name]:.1f}" for switch in kinds for way in WAYS) + " |"
        )
    for switch in kinds:
        print(f"{switch}: warm over naive {mean_of[switch, 'warm']['all'] / mean_of[switch, 'naive']['all']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a switch between frameworks costs, by part: from the last optimizer step of one to the first step of the next.

.envs/train/bin/python benchmarks/switch_cost.py [repeats=1] | follow=RUN_DIR

Two small rounds of recipe=interleaved, in empty run directories, turn by turn: naive (every process starts cold, verl by its
own `python -m verl.trainer.main_ppo`) and warm (`run.warm`, the tiny scale's default). Seconds of wall time, read off the files
that the frameworks write and the lines that they log (moments.py). Run it on a quiet machine. follow: the switches of a run of
any scale with recipe.rounds=2 and run.keep_work=true that goes on there (benchmarks/gpu/chain.py).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean

from moments import Marks, Watch, attempt

from synergy.driver import ledger

SMALL = (
    "recipe=interleaved", "recipe.rounds=2", "recipe.sft_on=all", "recipe.sample_first=false",
    "data.sizes={train: 64, val: 8, bench: 4}", "evaluate.runs=1",
    "budget.rl_steps=4", "rl.verl.data.train_batch_size=8", "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "rl.verl.actor_rollout_ref.rollout.n=4",
)  # fmt: skip
WAYS = {"naive": ("run.warm=false", "rl.module=verl.trainer.main_ppo"), "warm": ("run.warm=true",)}
CHAIN = ("sft-1", "rl-1", "sft-2", "rl-2")


def marks(watch: Watch) -> dict[str, Marks]:
    """Stage of the chain -> moments: those of its process, ended, published; of all that are finished."""
    found = {}
    for entry in ledger.read(watch.root / "ledger.jsonl").values():
        if entry.name in CHAIN:
            found[entry.name] = watch.of(entry) | {
                "ended": (attempt(watch.root, entry) / "outcome.json").stat().st_mtime,
                "published": entry.started + entry.seconds,
            }
    return found


def parts(before: Marks, after: Marks) -> dict[str, float]:
    """Seconds between the last step of one stage and the first of the next."""
    return {
        "last checkpoint, end of process": before["ended"] - before["last"],
        "verify, publish": before["published"] - before["ended"],
        "check of the model, data of the next round": after["spawn"] - before["published"],
        "imports": after["imported"] - after["spawn"],
        "cluster, engines, model": after["first"] - after["imported"],
        "all": after["first"] - before["last"],
    }


def switches(watch: Watch) -> list[tuple[str, dict[str, float]]]:
    """(kind of switch, its parts), of those that are over."""
    found = marks(watch)
    return [
        (f"{one[:-2]} to {other[:-2]}".upper().replace("TO", "to"), parts(found[one], found[other]))
        for one, other in pairwise(CHAIN)
        if {one, other} <= set(found)
    ]


def small(way: str) -> list[tuple[str, dict[str, float]]]:
    """The switches of one small run."""
    root = Path(tempfile.mkdtemp(prefix="synergy-switch-"))
    words = (f"run.dir={root}", "run.keep_work=true", *SMALL, *WAYS[way])
    try:
        with Watch(root) as watch:
            subprocess.run([sys.executable, "-m", "synergy.run", *words], check=True, stdout=subprocess.DEVNULL)
        return switches(watch)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def follow(root: Path) -> None:
    """Tell the switches of a run of recipe.rounds=2 that goes on in this run directory, one after the other."""
    told = 0
    with Watch(root) as watch:
        while told < len(CHAIN) - 1:
            time.sleep(1)
            for switch, took in switches(watch)[told:]:
                say("", switch, took)
                told += 1


def say(way: str, switch: str, took: Marks) -> None:
    print(f"{way}{switch}: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in took.items()), flush=True)


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    if "follow" in words:
        return follow(Path(words["follow"]).absolute())
    repeats = int(words.get("repeats", 1))
    told: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(repeats):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            for switch, took in small(way):
                told.setdefault((switch, way), []).append(took)
                say(f"{way}, ", switch, took)
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

"""What the driver costs: a recipe run by synergy against the same native commands run by a shell script.

    .envs/train/bin/python benchmarks/driver_overhead.py recipe=sft [repeats=3] [any override]

Each repeat runs the recipe in a fresh run directory, then the ``command.sh`` of every stage in the same order, and prints
both times and their ratio. The shell leaves out what the driver adds: keys, checks, verification, hand-off, fsync, ledger.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def seconds(argv: list[str]) -> float:
    started = time.monotonic()
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.monotonic() - started


def scripts(root: Path) -> list[Path]:
    """The stages' scripts in the order they ran."""
    return sorted(root.glob("stages/*/attempt-1/command.sh"), key=lambda file: file.stat().st_mtime)


def by_hand(root: Path) -> str:
    """One shell script that runs all of them, each into an empty work folder."""
    rows = ["set -e"]
    for script in scripts(root):
        work = script.parent.parent / "work"
        extra = work / "rollouts" if script.parent.parent.name.startswith("rl-") else work
        rows.append(f"mkdir -p '{extra}'; bash '{script}' > /dev/null 2>&1")
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    repeats = next((int(word.split("=")[1]) for word in argv if word.startswith("repeats=")), 3)
    overrides = [word for word in argv if not word.startswith("repeats=")]
    ratios = []
    for number in range(repeats):
        root = Path(tempfile.mkdtemp(prefix="synergy-overhead-"))
        driven = seconds([sys.executable, "-m", "synergy.run", *overrides, f"run.dir={root}"])
        plain = seconds(["bash", "-c", by_hand(root)])
        ratios.append(driven / plain)
        print(f"repeat {number + 1}: synergy {driven:.1f} s, shell {plain:.1f} s, ratio {ratios[-1]:.3f}", flush=True)
        shutil.rmtree(root)
    print(f"median ratio {median(ratios):.3f} (aim: 1.02 or less)")


if __name__ == "__main__":
    main(sys.argv[1:])

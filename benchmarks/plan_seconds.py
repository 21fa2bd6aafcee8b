"""How long ``synergy plan`` takes, beside an interpreter that starts and does nothing.

.envs/train/bin/python benchmarks/plan_seconds.py [recipe=progressive] [any override]
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

REPEATS = 10


def seconds(argv: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main(overrides: list[str]) -> None:
    plan = [sys.executable, "-m", "synergy.plan", *(overrides or ["recipe=progressive"])]
    bare = [sys.executable, "-c", "pass"]
    pairs = [(seconds(plan), seconds(bare)) for _ in range(REPEATS)]
    planned, empty = (sorted(column) for column in zip(*pairs, strict=True))
    print(
        f"plan: median {median(planned):.2f} s, slowest {planned[-1]:.2f} s; bare Python: median {median(empty):.2f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])

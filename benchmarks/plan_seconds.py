"""How long ``synergy plan`` takes, beside an interpreter that starts and does nothing.

.envs/train/bin/python benchmarks/plan_seconds.py [recipe=progressive] [any override]
.envs/train/bin/python benchmarks/plan_seconds.py -m recipe=base,sft,rl

With -m, the jobs of the sweep together, beside those of one job after the other in processes of their own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from synergy import compose

REPEATS = 10


def seconds(argv: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main(words: list[str]) -> None:
    plan, bare = [sys.executable, "-m", "synergy.plan"], [sys.executable, "-c", "pass"]
    pairs = [(seconds([*plan, *words]), seconds(bare)) for _ in range(REPEATS)]
    planned, empty = (sorted(column) for column in zip(*pairs, strict=True))
    print(
        f"plan: median {median(planned):.2f} s, slowest {planned[-1]:.2f} s; bare Python: median {median(empty):.2f} s"
    )
    jobs = [task.words for task in compose.tasks(words)]
    if len(jobs) > 1:
        alone = [seconds([*plan, *job]) for job in jobs]
        print(f"{len(jobs)} jobs; each by itself: median {median(alone):.2f} s, {sum(alone):.2f} s together")


if __name__ == "__main__":
    main(sys.argv[1:] or ["recipe=progressive"])

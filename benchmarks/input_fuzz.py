"""Does a config or file end in a traceback, a hang, or a file outside the run directory? tests/test_fuzz.py, longer.

.envs/train/bin/python benchmarks/input_fuzz.py [minutes=10] [seed=0] [only=overrides]

Ends with the failing case and its traceback, and exit code 1; else tells how many inputs were tried.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_fuzz import CASES, fuzz  # noqa: E402

ROUND = 25
"""Inputs of a case before the next one has its turn."""


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    end, seed = time.monotonic() + 60 * float(given.get("minutes", 10)), int(given.get("seed", 0))
    names = [given["only"]] if "only" in given else list(CASES)
    tried: Counter[str] = Counter()
    while time.monotonic() < end:
        for name in names:
            faulthandler.dump_traceback_later(600, exit=True)  # a hang is a failure too
            try:
                fuzz(name, ROUND, seed)
            except BaseException:
                print(f"case {name!r}, seed={seed}", file=sys.stderr)
                raise
            faulthandler.cancel_dump_traceback_later()
            tried[name] += ROUND
        seed += 1
    print(", ".join(f"{name}: {count}" for name, count in tried.items()), "inputs; each ended well or with one message")


if __name__ == "__main__":
    main(sys.argv[1:])

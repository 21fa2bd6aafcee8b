"""Difficulty levels of the lab's benchmarks: passes of 16 runs of the base model, ``python -m synergy.lab.levels MODEL OUT``.

The runs are those of an evaluation (recipes/evaluate/tiny.yaml: no instruction, its temperature) through the sample stage's
own program, with another seed: the evaluation that gains are measured from must not be the one that defined the levels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from synergy import paths
from synergy.data import records
from synergy.lab import digits
from synergy.workers.sample import rows

SEED = 1000
BENCHMARKS = ("bench_open", "bench_choice")


def settings(group: str) -> dict[str, Any]:
    """The tiny scale's settings of a config group."""
    found: dict[str, Any] = yaml.safe_load((paths.ROOT / "recipes" / group / "tiny.yaml").read_text())
    return found


def passes(model: Path, folder: Path, name: str) -> dict[str, int]:
    """Question id -> correct responses of 16, for the benchmark whose records lie in ``folder``."""
    sample, evaluate = settings("sample"), settings("evaluate")
    file = folder / f"{name}.jsonl"
    spec = {
        "model": str(model.resolve()),
        "records": str(file),
        "ids": None,
        "n": records.LEVEL_RUNS,
        "seed": SEED,
        "sampling": evaluate["sampling"],
        "instruction": None,
        "engine": sample["engine"],
        "replicas": 1,
        "responses": str(folder / name),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    env = {**os.environ, **sample["env"], "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "synergy.workers.sample", str(folder / "spec.json")], env=env, check=True)
    right = Counter[str]()
    for row in rows(folder / name):
        right[row["id"]] += row["acc"] > 0.5
    return {record.id: right[record.id] for record in records.read(file)}


def tag(model: Path, out: Path) -> dict[str, int]:
    """Writes ``out``: question id -> passes, for both benchmarks at their default size; prints the spread over levels."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits.write(folder, train=1, val=1)
        for benchmark in BENCHMARKS:
            counted = passes(model, folder, benchmark)
            levels = Counter(records.level(count) for count in counted.values())
            print(f"{benchmark}: questions at level 1 to 5: {[levels[n] for n in range(1, 6)]}", flush=True)
            found |= counted
    out.write_text(json.dumps(found, indent=0) + "\n")
    return found


if __name__ == "__main__":
    tag(Path(sys.argv[1]), Path(sys.argv[2]))

"""The whole report at the paper's size: 5 benchmarks, 8 models, 4 runs, 10,380 questions, long responses.

.envs/train/bin/python benchmarks/report_scale.py [share=1.0] [characters=3000]

Writes made-up results of finished stages to a temporary folder (`share` of the questions; lengths are log-normal with the
median `characters` and at most 32,000), then has a process of its own, held to two processors, write the report of them, and
tells its time by the clock and its peak memory. The targets are 60 s and 2 GB.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from synergy.data.records import level
from synergy.driver.ledger import Entry
from synergy.driver.plan import Plan, Step, Workspace
from synergy.report import build
from synergy.stages import Stage

BENCHMARKS = {"MathVision": 3040, "MathVerse": 3940, "MathVista": 1000, "MMMU": 900, "MMStar": 1500}
MODELS = ("base", "sft", "rl", "two_stage", "interleaved", "progressive", "data_mixing", "model_merging")
RUNS, PASSES, MOST = 4, 16, 32_000
SENTENCE = 'So \\frac{a}{b} = 7, since "x" is 5.\nWait, let me check that again: the angle at B is 40°. '
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 20_000).decode()
SETTINGS = {
    "runs": RUNS,
    "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 24576, "seed": 0},
    "instruction": "Think.",
}


def step(root: Path, name: str, kind: str, inputs: dict[str, str], number: int) -> Step:
    """A finished stage that was never run."""
    key, folder = f"{number:02d}" + "ab" * 31, root / "stages" / f"{kind}-{name}"
    (folder / "output").mkdir(parents=True, exist_ok=True)
    entry = Entry(key, kind, name, f"stages/{folder.name}/output", "d", "f", started=1.78e9 + 60 * number, seconds=50)
    read = dict.fromkeys(inputs, root / "stages" / "prepare-benchmarks" / "output")
    return Step(Stage(name, kind, SETTINGS, inputs, ""), key, {}, folder, read, "reuse", "finished", entry)


def plan(root: Path) -> Plan:
    steps = [step(root, "benchmarks", "prepare", {"base": "base"}, 0)]
    for number, model in enumerate(MODELS, start=1):
        steps.append(step(root, f"eval-{model}", "evaluate", {"model": model, "benchmarks": "benchmarks"}, number))
    return Plan("model_merging", steps, Workspace(root), {})


def write(todo: Plan, share: float, characters: float) -> int:
    """Benchmarks and results; returns the size of the results in bytes."""
    rng, size = np.random.default_rng(0), 0
    prepare, *evaluations = todo.steps
    sizes = {name: max(8, int(share * n)) for name, n in BENCHMARKS.items()}
    chances = {name: rng.beta(0.5, 0.6, n) for name, n in sizes.items()}
    passes = {name: rng.binomial(PASSES, p) for name, p in chances.items()}
    out = prepare.folder / "output"
    (out / "benchmarks.json").write_text(json.dumps([{"name": n, "tsv": f"{n}.tsv", "kind": "open"} for n in sizes]))
    for name in sizes:
        lines = ["index\tid\timage\tquestion\tanswer\tdifficulty_level\tpasses"]
        lines += [f"{i}\tq{i}\t{PIXEL}\tHow much?\t7\t{level(int(k))}\t{k}" for i, k in enumerate(passes[name])]
        (out / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    for number, todo_step in enumerate(evaluations):
        file = todo_step.folder / "output" / "results.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            for name, n in sizes.items():
                levels = [level(int(k)) for k in passes[name]]
                for run in range(RUNS):
                    lengths = np.minimum(rng.lognormal(np.log(characters), 0.9, n), MOST).astype(int)
                    right = rng.random(n) < np.clip(chances[name] + 0.02 * number, 0, 1)
                    for i in range(n):
                        text = SENTENCE * (lengths[i] // len(SENTENCE) + 1)
                        row: dict[str, Any] = {
                            "benchmark": name, "run": run, "id": f"q{i}", "index": str(i), "level": levels[i],
                            "correct": bool(right[i]), "answer": "7" if right[i] else None, "rule": "boxed/number",
                            "tokens": int(lengths[i]) // 3, "finish_reason": "stop" if lengths[i] < MOST else "length",
                            "response": text[: lengths[i]],
                        }  # fmt: skip
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        size += file.stat().st_size
    return size


def measure(root: Path) -> None:
    """In a process of its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    begin, busy = time.perf_counter(), time.process_time()
    page = build.write(plan(root))
    took, busy = time.perf_counter() - begin, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"report: {took:.1f} s, processor {busy:.1f} s, peak memory {peak / 1e9:.2f} GB", end=", ")
    print(f"page of {page.stat().st_size / 1e6:.1f} MB, two processors, load average {os.getloadavg()[0]:.1f}")


def main(argv: list[str]) -> None:
    if argv[:1] == ["measure"]:
        return measure(Path(argv[1]))
    words = dict(word.split("=", 1) for word in argv)
    with tempfile.TemporaryDirectory() as name:
        size = write(plan(Path(name)), float(words.get("share", 1)), float(words.get("characters", 3000)))
        print(f"{len(MODELS)} models, {RUNS} runs, {len(BENCHMARKS)} benchmarks: {size / 1e9:.2f} GB of results")
        subprocess.run([sys.executable, __file__, "measure", name], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Sampling against plain vLLM: tokens per second of the `sample` stage's program and of `LLM.generate` on the same prompts.

.envs/train/bin/python benchmarks/sample_throughput.py [questions=256] [n=8] [repeats=3] [model=FOLDER]

Both use one engine in one process, turn by turn, each from empty caches, and draw the same tokens (same seeds). Ours also
renders prompts, opens images, judges and writes every response; plain `generate` gets its prompts ready-made. `model` is the
tiny base model, whose answers have some ten tokens, or another checkpoint of it. Processor time counts all threads; with
OMP_WAIT_POLICY=passive, so that waiting threads don't count, it shows the difference where another load disturbs the clock.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from synergy import lab, paths
from synergy.data import records
from synergy.lab import digits
from synergy.workers import sample


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    count, n, repeats = (int(words.get(name, value)) for name, value in (("questions", 256), ("n", 8), ("repeats", 3)))
    recipe: dict[str, Any] = yaml.safe_load((paths.ROOT / "recipes/sample/tiny.yaml").read_text())
    os.environ.update(recipe["env"])
    model = words.get("model", str(lab.BASE))
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits.write(folder, train=count, val=1, bench=1)
        spec = {"records": str(folder / "train.jsonl"), "n": n, "seed": 0, "instruction": lab.INSTRUCTION, **recipe}
        asked = records.read(folder / "train.jsonl")
        processor = AutoProcessor.from_pretrained(model)
        engine = LLM(model=model, **recipe["engine"])
        prompts = [sample.request(record, processor, folder, lab.INSTRUCTION) for record in asked]
        plain = {key: value for key, value in recipe["sampling"].items() if key != "seed"}
        params = [SamplingParams(n=n, seed=sample.seed(spec, record.id), **plain) for record in asked]

        def theirs() -> int:
            outputs = engine.generate(prompts, params, use_tqdm=False)
            return sum(len(one.token_ids) for output in outputs for one in output.outputs)

        def ours() -> int:
            file = folder / "responses.jsonl"
            file.unlink(missing_ok=True)
            sample.ask(engine, processor, spec, asked, file)
            return sum(row["tokens"] for _, row in records.lines(file))

        seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        theirs(), ours()  # warm
        for turn in range(repeats):
            for name, run in (("plain", theirs), ("ours", ours))[:: 1 if turn % 2 == 0 else -1]:
                engine.reset_prefix_cache()
                engine.reset_mm_cache()
                engine.llm_engine.reset_encoder_cache()
                start, busy = time.perf_counter(), time.process_time()
                tokens = run()
                seconds[name].append((time.perf_counter() - start, time.process_time() - busy))
                clock, busy = seconds[name][-1]
                print(f"{name}: {tokens} tokens, {tokens / clock:.0f} per second, processor {busy:.2f} s", flush=True)
    for index, what in enumerate(("clock", "processor time")):
        ratios = [p[index] / o[index] for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
        print(f"throughput over plain by {what}: median of turns {median(ratios):.3f}, least {min(ratios):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Does any response hang, crash, swell or trick the checker? All hostile responses, then random mixtures for some minutes.

.envs/train/bin/python benchmarks/answer_fuzz.py [minutes=10] [seed=0] [seconds=2]

Ends with exit code 1 and the response at the first judgement that takes longer than `seconds`, raises, or calls a hostile
response correct; and when memory grew, a process was left over or a file was planted. Runs in an empty folder of its own.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from reward_fns import checker_pool
from reward_fns.accuracy_format import compute_score
from reward_fns.answer import judge

ANSWERS = Path(__file__).resolve().with_name("answers")
PIECES = (
    "\\boxed{", "}", "{", "(", ")", "[", "]", "\\{", "\\}", "^", "^{", "**", "!", "\\frac", "\\sqrt", "\\left(",
    "\\right)", "$", "\\",
    "<think>", "</think>", "<answer>", "</answer>", "answer is ", "Answer: ", "\\text{", "\\begin{pmatrix}",
    "\\end{pmatrix}", "&",
    "\\\\", "9", "99999", "1e999", "0", ".", ",", ";", " or ", " and ", "=", "<", "\\le ", "\\in ", "\\cup ",
    "\\pm ", "%", " cm", "x", "y", "i",
    "e", "\\pi", "\\sin", "\\log", "\\int", "\\sum_{i=1}^{9}", "\\infty", "°", "²", "½", "٣", "\u202e", "\ud800",
    "\x00", "İ", "A", "B", "Yes",
    "__import__('os').system('touch PLANTED')", "open('PLANTED','w')", "\\input{/etc/passwd}", "-", "+", "/", "|",
    "\n", " ",
)  # fmt: skip


def response(hostile: dict[str, Any]) -> str:
    return "".join(text * times for text, times in hostile["parts"])


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ANSWERS / name).read_text(encoding="utf-8").splitlines()]


def mixture(rng: random.Random, seeds: list[str]) -> str:
    """A random text: pieces alone, or spliced into, cut out of and repeated within a labelled or hostile response."""
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 40)))
    if rng.random() < 0.7:
        other = rng.choice(seeds)[:2000]
        cut = rng.randrange(len(other) + 1)
        text = other[:cut] + text + other[cut + rng.randrange(20) :]
    if rng.random() < 0.2:
        text = text[: rng.randint(1, 30)] * rng.choice((10, 100, 1000))
    return f"\\boxed{{{text}}}" if rng.random() < 0.5 else text


def check(text: str, gold: str, choices: Any, seconds: float) -> bool:
    start = time.perf_counter()
    faulthandler.dump_traceback_later(60, exit=True)  # a hang inside one of Python's own operations too
    try:
        correct = judge(text, gold, choices).correct
        compute_score("fuzz", text, gold, {"choices": choices})
    except Exception as error:
        sys.exit(f"raised {error!r}: gold {gold!r}, response {text[:500]!r}")
    faulthandler.cancel_dump_traceback_later()
    took = time.perf_counter() - start
    if took > seconds:
        sys.exit(f"took {took:.2f} s: gold {gold!r}, response {text[:500]!r}")
    return correct


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    minutes, seed, seconds = float(words.get("minutes", 10)), int(words.get("seed", 0)), float(words.get("seconds", 2))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        checker_pool.warm()
        start = time.monotonic()
        hostile, pairs = load("hostile.jsonl"), load("pairs.jsonl")
        taken = [h["id"] for h in hostile if check(response(h), h["gold"], None, seconds)]
        print(f"{len(hostile)} hostile responses in {time.monotonic() - start:.1f} s, taken for correct: {taken}")
        before, kilobytes = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rng, count, longest = random.Random(seed), 0, 0.0
        seeds = [response(h)[:100_000] for h in hostile] + [p["response"] for p in pairs]
        golds = [(p["gold"], p.get("choices")) for p in pairs]
        while time.monotonic() - before < 60 * minutes:
            gold, choices = rng.choice(golds)
            began = time.perf_counter()
            check(mixture(rng, seeds), gold, choices, seconds)
            longest, count = max(longest, time.perf_counter() - began), count + 1
        children = psutil.Process().children(recursive=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes) / 1024
        largest = max((child.memory_info().rss for child in children), default=0) / 2**20
        planted = os.listdir(folder)
        print(f"{count} mixtures in {minutes:g} minutes, slowest {longest:.2f} s, seed {seed}")
        print(
            f"memory grew by {grown:.0f} MiB, {len(children)} children, the largest {largest:.0f} MiB; files planted: {planted}"
        )
        checker_pool.close()
        left = psutil.wait_procs(children, timeout=5)[1]
        if taken or planted or left or grown > 200 or len(children) > 2 * checker_pool.CHILDREN:
            sys.exit(f"left over: processes {left}, files {planted}; memory grew by {grown:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])

"""How fast is the checker on what RL gives it? Judgements per CPU second beside math-verify's, and a whole batch's latency.

.envs/train/bin/python benchmarks/answer_speed.py [responses=1024] [tokens=4000] [threads=4]

The mix: groups of 8 rollouts to a question; 40 % of the questions have a number as gold answer, 25 % a choice, 15 % a fraction,
percentage or unit, 20 % a formula, set or interval; half of the rollouts are correct; each reasons for 4,000 tokens (4
characters each) with formulas and boxes on the way. CPU seconds count the checker's child processes too.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from reward_fns import checker_pool
from reward_fns.answer import judge

GROUP = 8
SHARES = {
    ("integers", "decimals"): 0.40,
    ("choice_letter", "choice_content"): 0.25,
    ("fractions", "percents", "units"): 0.15,
    ("expressions", "radicals", "sets", "intervals", "tuples", "equations"): 0.20,
}
THOUGHTS = (
    "First, look at the figure: the triangle has sides $a=3$ and $b=4$, so $c=\\sqrt{a^2+b^2}=5$.",
    "Wait, let me check that again. The area would be $\\frac{1}{2}\\cdot 3\\cdot 4=6$.",
    "So the answer is not yet clear; maybe \\boxed{12} at this point, but let me verify.",
    "Therefore $x^{2}-5x+6=(x-2)(x-3)$, which vanishes at $x\\in\\{2,3\\}$.",
    "Hmm, alternatively the graph shows 4 apples and 7 pears, in all 11 fruits.",
)


def batch(count: int, tokens: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rollouts in groups of 8; pairs of one gold answer share a question."""
    rng = random.Random(seed)
    lines = (Path(__file__).with_name("answers") / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    rollouts: list[dict[str, Any]] = []
    while len(rollouts) < count:
        kinds = rng.choices(list(SHARES), list(SHARES.values()))[0]
        question = rng.choice([p for p in pairs if p["kind"] in kinds])
        same = [p for p in pairs if p["kind"] in kinds and bool(p.get("choices")) == bool(question.get("choices"))]
        wrong = rng.sample(same, 3)  # wrong rollouts of a group share a few answers
        for _ in range(GROUP):
            final = (question if rng.random() < 0.5 else rng.choice(wrong))["response"].rpartition("</think>")[2]
            thought = " ".join(rng.choice(THOUGHTS) for _ in range(4 * tokens // 85))
            response = f"<think>{thought}</think>\n{final}"
            rollouts.append({"response": response, "gold": question["gold"], "choices": question.get("choices")})
    return rollouts[:count]


def cpu() -> float:
    times = os.times()
    children = 0.0
    for child in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = child.read_text().rpartition(")")[2].split()
            if int(fields[2]) == os.getpgrp() and int(child.parent.name) != os.getpid():
                children += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            continue
    return times.user + times.system + children


def main(argv: list[str]) -> None:
    os.setpgid(0, 0)  # so that /proc tells which processes are the checker's
    logging.disable(logging.CRITICAL)
    words = dict(word.split("=", 1) for word in argv)
    count, tokens, threads = (
        int(words.get("responses", 1024)),
        int(words.get("tokens", 4000)),
        int(words.get("threads", 4)),
    )
    rollouts = batch(count, tokens)
    checker_pool.warm()

    start, before = time.perf_counter(), cpu()
    with ThreadPoolExecutor(threads) as pool:
        verdicts = list(pool.map(lambda r: judge(r["response"], r["gold"], r["choices"]), rollouts))
    wall, used = time.perf_counter() - start, cpu() - before
    ours = count / used
    print(
        f"ours: {count} responses of {tokens} tokens in {wall:.2f} s with {threads} threads, {used:.2f} CPU s, ", end=""
    )
    print(f"slowest {max(verdict.seconds for verdict in verdicts):.3f} s: {ours:.0f} per CPU second")

    from math_verify import parse, verify

    part = rollouts[:: max(1, count // 128)]
    before = cpu()
    for rollout in part:
        # Only the end: given all of a response, it also reads every formula on the way.
        verify(parse(f"${rollout['gold']}$"), parse(rollout["response"][-400:]))
    theirs = len(part) / (cpu() - before)
    print(f"math-verify: {len(part)} of them, their last 400 characters only: {theirs:.0f} per CPU second")
    print(f"ratio: {ours / theirs:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])

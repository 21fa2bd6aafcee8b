"""How often does a checker agree with hand-made labels? Ours, math-verify and mathruler on the same pairs, by kind.

.envs/train/bin/python benchmarks/answer_agreement.py [benchmarks/answers/pairs.jsonl ...] [errors=1]

math-verify gets gold as `$gold$` and all three of its readers, mathruler the content of the last box; both are used as their
own documentation shows, and time out after five seconds a pair.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

FILES = [Path(__file__).with_name("answers") / name for name in ("pairs.jsonl", "held_out.jsonl")]
SECONDS = 5


def ours(pair: dict[str, Any]) -> bool:
    from reward_fns.answer import judge

    return judge(pair["response"], pair["gold"], pair.get("choices")).correct


def math_verify(pair: dict[str, Any]) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    readers = [LatexExtractionConfig(), ExprExtractionConfig(), StringExtractionConfig()]
    gold = pair["gold"] if "$" in pair["gold"] or len(pair["gold"]) == 1 else f"${pair['gold']}$"
    return bool(verify(parse(gold, readers), parse(pair["response"], readers)))


def mathruler(pair: dict[str, Any]) -> bool:
    from mathruler.grader import extract_boxed_content, grade_answer

    return bool(grade_answer(extract_boxed_content(pair["response"]), pair["gold"]))


CHECKERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "ours": ours,
    "math-verify": math_verify,
    "mathruler": mathruler,
}


def agrees(checker: Callable[[dict[str, Any]], bool], pair: dict[str, Any]) -> bool:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return checker(pair) is pair["correct"]
    except Exception:
        return not pair["correct"]  # no verdict counts as "wrong"
    finally:
        signal.alarm(0)


def main(argv: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    files = [Path(word) for word in argv if "=" not in word] or [file for file in FILES if file.exists()]
    for file in files:
        pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        sizes = Counter(pair["kind"] for pair in pairs)
        right: dict[str, Counter[str]] = {name: Counter() for name in CHECKERS}
        false_positives: Counter[str] = Counter()
        for pair in pairs:
            for name, checker in CHECKERS.items():
                fine = agrees(checker, pair)
                right[name][pair["kind"]] += fine
                false_positives[name] += not fine and not pair["correct"]
                if name == "ours" and not fine and "errors=1" in argv:
                    print({key: pair[key] for key in ("id", "response", "gold", "correct")})
        print(f"\n{file.name}: {len(pairs)} pairs, {sum(pair['correct'] for pair in pairs)} of them correct\n")
        print(f"| kind | pairs | {' | '.join(CHECKERS)} |\n|---|---|{'---|' * len(CHECKERS)}")
        for kind, size in sizes.items():
            print(f"| {kind} | {size} | {' | '.join(f'{100 * right[n][kind] / size:.0f} %' for n in CHECKERS)} |")
        shares = (f"{100 * sum(right[n].values()) / len(pairs):.1f} %" for n in CHECKERS)
        print(f"| **all** | {len(pairs)} | {' | '.join(shares)} |")
        print(f"| taken for correct, but wrong | | {' | '.join(str(false_positives[n]) for n in CHECKERS)} |")


if __name__ == "__main__":
    main(sys.argv[1:])

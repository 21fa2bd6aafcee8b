"""Find the final answer in a response and judge it against the gold answer.

`judge` is the one entry point of RL rewards, sampling and evaluation. Nothing that a model wrote is ever evaluated as
code, the cost of an input is bounded whatever it holds, and every function is safe to call from threads.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from reward_fns.choices import choice_letter
from reward_fns.equivalence import equivalent
from reward_fns.extraction import MAX_RESPONSE, extract
from reward_fns.text import tidy


@dataclass(frozen=True)
class Verdict:
    """What the checker decided.

    correct: whether the answer equals the gold answer. answer: the final answer, tidied, or the letter of the choice that
    it stands for (None: there is none). rule: which rule found the answer and which compared it, "boxed/number" say.
    seconds: wall time of the judgement.
    """

    correct: bool
    answer: str | None
    rule: str
    seconds: float


def judge(response: str, gold: str, choices: Mapping[str, str] | None = None) -> Verdict:
    """Judge the last answer in `response` against `gold`, a value, or with `choices` (letter to text) a letter or text.

    Of a response longer than MAX_RESPONSE characters the end is judged. Never raises on account of what a string holds.
    """
    start = time.perf_counter()
    correct, answer, rule = _judge(response[-MAX_RESPONSE:], str(gold), choices)
    return Verdict(correct, answer, rule, time.perf_counter() - start)


def _judge(response: str, gold: str, choices: Mapping[str, str] | None) -> tuple[bool, str | None, str]:
    answer, found = extract(response, tuple(choices or ()))
    if answer is None:
        return False, None, found
    if choices and (wanted := choice_letter(gold, choices)) is not None:
        letter = choice_letter(answer, choices)
        return letter == wanted, letter or tidy(answer), f"{found}/choice"
    correct, rule = equivalent(answer, gold)
    return correct, tidy(answer), f"{found}/{rule}"

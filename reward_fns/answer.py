"""Find the final answer in a response and judge it against the gold answer.

`judge` is the one entry point of RL rewards, sampling and evaluation. Nothing that a model wrote is ever evaluated as
code, the cost of an input is bounded whatever it holds, and every function is safe to call from threads.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from reward_fns.equivalence import equivalent, plain
from reward_fns.extraction import MAX_RESPONSE, extract

# "B", "(B)", "B.", "\text{B}", "Option B", "B. some text", "(B) some text"; the letter must stand in capitals.
_LETTER = re.compile(
    r"(?:option|choice|answer)?[\s:]*[(\[]?([A-Z])(?:[)\]]|[.:](?!\d)|\b(?!['’]))\s*(.*)", re.IGNORECASE | re.DOTALL
)
_GLUED_TEXT = re.compile(r"[.:)\]]|\s*$")


@dataclass(frozen=True)
class Verdict:
    """What the checker decided.

    correct: whether the answer equals the gold answer. answer: the final answer as extracted (None: there is none),
    or the letter of the choice that it stands for. rule: which rule found the answer and which compared it,
    "boxed/number" say. seconds: wall time of the judgement.
    """

    correct: bool
    answer: str | None
    rule: str
    seconds: float


def choice_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter in `choices` (letter to text) that `answer` stands for, by letter or by text; None if neither."""
    text = plain(answer)
    if text in choices:
        return text
    folded = text.casefold()
    by_text = [letter for letter, choice in choices.items() if plain(choice).casefold() == folded]
    if by_text:
        return by_text[0]
    if match := _LETTER.fullmatch(text):
        letter, rest = match[1].upper(), match[2]
        # "A. 12" and "(A) 12" name a choice; "A dog" does not, unless that is what follows.
        named = _GLUED_TEXT.match(text, match.end(1)) is not None
        if letter in choices and (named or plain(rest).casefold() == plain(choices[letter]).casefold()):
            return letter
    by_value = [letter for letter, choice in choices.items() if equivalent(answer, choice, thorough=False)[0]]
    return by_value[0] if len(by_value) == 1 else None


def _judge(response: str, gold: str, choices: Mapping[str, str] | None) -> tuple[bool, str | None, str]:
    answer, found = extract(response, tuple(choices or ()))
    if answer is None:
        return False, None, found
    if choices:
        wanted = choice_letter(gold, choices)
        if wanted is not None:
            letter = choice_letter(answer, choices)
            return letter == wanted, letter or answer, f"{found}/choice"
    correct, rule = equivalent(answer, gold)
    return correct, answer, f"{found}/{rule}"


def judge(response: str, gold: str, choices: Mapping[str, str] | None = None) -> Verdict:
    """Judge the last answer in `response` against `gold`, a value, or with `choices` (letter to text) a letter or text.

    Of a response longer than MAX_RESPONSE characters the end is judged. Never raises on account of what a string holds.
    """
    start = time.perf_counter()
    correct, answer, rule = _judge(response[-MAX_RESPONSE:], str(gold), choices)
    return Verdict(correct, answer, rule, time.perf_counter() - start)

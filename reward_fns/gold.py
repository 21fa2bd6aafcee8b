"""Whether a gold answer can be judged at all: asked of every row before training, never first in the middle of it."""

from collections.abc import Mapping
from typing import Any

from reward_fns.answer import judge
from reward_fns.choices import choice_letter
from reward_fns.extraction import MAX_ANSWER
from reward_fns.quantity import read_quantity
from reward_fns.text import tidy, yes_no

TYPES = ("choice", "number", "expression", "yes/no", "text")
"""Values of a record's answer_type; without one, any answer that can be judged will do."""


def problem(gold: Any, choices: Mapping[str, str] | None = None, answer_type: str | None = None) -> str | None:
    """What is wrong with a gold answer, and how to mend it; None if nothing is."""
    if answer_type is not None and answer_type not in TYPES:
        return f"answer_type {answer_type!r} is unknown; one of {', '.join(TYPES)}, or none"
    if gold is None:
        return "has no answer"
    if isinstance(gold, (list, tuple, set, dict)):
        return f"has several answers ({len(gold)}); keep one, as text (a set is written \\{{1, 2\\}})"
    if not isinstance(gold, str):
        return f"its answer is {type(gold).__name__}, not text"
    if not gold.strip():
        return "its answer is empty"
    if len(gold) > MAX_ANSWER:
        return f"its answer has {len(gold)} characters, more than {MAX_ANSWER}; only a final answer can be judged"
    if answer_type == "choice" and not choices:
        return "its answer_type is choice, but it has no choices"
    if choices and (answer_type == "choice" or gold.strip() in "ABCDEFGHIJ") and choice_letter(gold, choices) is None:
        return f"its answer {gold!r} is none of its choices {sorted(choices)}"
    if answer_type == "number" and read_quantity(tidy(gold)) is None:
        return f"its answer {gold!r} is no number; answer_type expression judges formulas"
    if answer_type == "yes/no" and yes_no(tidy(gold)) is None:
        return f"its answer {gold!r} is neither yes nor no"
    if not judge(f"\\boxed{{{gold}}}", gold, choices).correct:
        return f"its answer {gold!r} would not even be equal to itself in \\boxed{{}}; are its braces balanced?"
    return None

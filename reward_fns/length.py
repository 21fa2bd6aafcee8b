"""Length-aware terms of the reward; all lengths in tokens. Off by default: the paper uses none."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

OVERLONG = frozenset({"max", "buffer", "factor"})
COSINE = frozenset({"max", "correct", "wrong", "exceeded"})


def overlong_penalty(tokens: int, most: int, buffer: int, factor: float = 1.0) -> float:
    """0 up to `most - buffer` tokens, falling linearly to -factor at `most` and beyond (DAPO, arXiv 2503.14476, eq. 13)."""
    return -factor * min(1.0, max(0.0, (tokens - (most - buffer)) / buffer))


def cosine_reward(
    correct: bool, tokens: int, most: int, right: tuple[float, float], wrong: tuple[float, float], exceeded: float
) -> float:
    """A reward that glides from right[0] (shortest) to right[1] (`most` tokens) for a correct answer, from wrong[0] to
    wrong[1] for a wrong one; `exceeded` at `most` tokens and beyond (Demystifying Long CoT, arXiv 2502.03373, eq. 1)."""
    if tokens >= most:
        return exceeded
    short, long = right if correct else wrong
    return long + 0.5 * (short - long) * (1 + math.cos(math.pi * tokens / most))


@cache
def _tokenizer(file: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def count(text: str, tokenizer: str | None) -> int:
    """Tokens of `text` by a tokenizer.json; characters without one."""
    return len(_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids) if tokenizer else len(text)


def problem(overlong: Mapping[str, Any] | None, cosine: Mapping[str, Any] | None) -> str | None:
    """What is wrong with the settings of both terms; None if nothing is."""
    for name, given, known in (("overlong", overlong, OVERLONG), ("cosine", cosine, COSINE)):
        if given is None:
            continue
        needed = known - {"factor"}
        if not needed <= set(given) <= known:
            return f"{name} takes {sorted(known)}, given: {sorted(given)}"
        if not float(given["max"]) > 0:
            return f"{name}.max={given['max']}: a number of tokens above 0"
    if overlong and not 0 < float(overlong["buffer"]) <= float(overlong["max"]):
        return f"overlong.buffer={overlong['buffer']}: above 0, at most overlong.max={overlong['max']}"
    if cosine and not all(len(cosine[part]) == 2 for part in ("correct", "wrong")):
        return "cosine.correct and cosine.wrong are two rewards each: for the shortest and for the longest response"
    return None

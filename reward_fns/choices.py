"""Multiple choice: which letter an answer stands for, by letter, by text, or by value."""

import json
import re
from collections.abc import Mapping
from typing import Any

from reward_fns.checker_pool import Algebra
from reward_fns.equivalence import equivalent
from reward_fns.text import key, tidy

# "B", "(B)", "B.", "\text{B}", "Option B", "B. some text", "(B) some text", "B (some text)", "B - some text".
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?)?[\s:]*[(\[{]?([A-Z])(?:[)\]}]|[.:,](?!\d)|\b(?!['’]))\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
_GLUED_TEXT = re.compile(r"[.:)\]}]|\s*$")
_REMARK = re.compile(r"\((.+)\)|-\s+(.+)", re.DOTALL)
_LETTER_LAST = re.compile(r"(.*\S)\s*\(([A-Z])\)", re.DOTALL)
_FURTHER = re.compile(r"^(?:and|or|/|,|&|\s)*\(?([A-Z])\)?(?![\w'])")
_OPTION = re.compile(r"(?<!\w)\(?([A-Z])[).:](?!\w)")
_COMPARED = ("number", "interval", "tuple", "set", "matrix", "yes/no")  # rules that know two values as different


def read_choices(value: Any) -> Mapping[str, str] | None:
    """Choices as letter to text: a mapping, its JSON text, or nothing. Parquet gives None for letters a row lacks."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if not value:
        return None
    return {str(letter): str(text) for letter, text in value.items() if text is not None} or None


def _same(one: str, other: str) -> bool:
    return key(one).casefold() == key(other).casefold()


def choice_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter in `choices` (letter to text) that `answer` stands for; None if none, or more than one."""
    text = tidy(answer)
    if text in choices:
        return text
    texts = {letter: tidy(choice) for letter, choice in choices.items()}
    by_text = [letter for letter, choice in texts.items() if _same(choice, text)]
    if by_text:
        return by_text[0]
    if match := _LETTER.fullmatch(text):
        letter, rest = match[1].upper(), tidy(match[2])
        # "A. 12" and "(A) 12" name a choice; "A dog" does not, unless that is what follows.
        named = _GLUED_TEXT.match(text, match.end(1)) is not None
        if letter in choices and (named or _same(rest, texts[letter])):
            return letter if _agrees(rest, letter, texts) else None
        if (remark := _REMARK.fullmatch(rest)) and _same(tidy(remark[1] or remark[2]), texts.get(letter, "")):
            return letter
    if (match := _LETTER_LAST.fullmatch(text)) and _same(match[1], texts.get(match[2], "")):
        return match[2]
    algebra = Algebra()  # one for all choices: together they take no longer than one answer may
    for thorough in (False, True):
        by_value = [
            letter
            for letter, choice in choices.items()
            if equivalent(answer, choice, thorough=thorough, algebra=algebra)[0]
        ]
        if by_value:
            return by_value[0] if len(by_value) == 1 else None
    return None


def _agrees(rest: str, letter: str, texts: Mapping[str, str]) -> bool:
    """Whether what follows a letter names no other choice."""
    equal, rule = equivalent(rest, texts[letter], thorough=False)
    if not rest or equal:
        return True
    others = [other for other in texts if other != letter]
    if rule in _COMPARED or any(equivalent(rest, texts[other], thorough=False)[0] for other in others):
        return False
    return not any(mark in others for mark in (*_FURTHER.findall(rest)[:1], *_OPTION.findall(rest)))

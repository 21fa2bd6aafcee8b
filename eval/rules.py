"""What is right, benchmark by benchmark: the gold answers and choices of a row, and the verdict on a response by rule.

``reward_fns.answer.judge`` decides. What is added here are the official sets' own ways: answers with a precision, lists,
several gold answers, and choices named in a last line or a sentence without any box. Nothing that a model wrote is evaluated.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Mapping
from dataclasses import replace

from reward_fns.answer import Verdict, judge
from reward_fns.extraction import extract, final_text
from reward_fns.quantity import read_quantity

Text = Mapping[str, str]
LISTED = ("mathvision", "mathvista", "mathverse")
"""Kinds with the choices in one column, a Python list literal; others have them in columns A, B, ..."""
_PLAIN = ("open", "choice")
_NAMED = (
    re.compile(r"\b(?i:option|choice|answer)\s*(?:is|:|would be|must be|should be)[\s:*]*\(?([A-Z])\)?(?![\w'])"),
    re.compile(r"\b(?i:option|choice)\s+\(?([A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"),
    re.compile(r"\b(?i:choose|select|pick)\s+(?i:option\s+|choice\s+)?\(?([A-Z])\)?(?![\w'])"),
)
_LAST = 2_000  # characters at the end in which a choice may be named in a sentence


def choices(kind: str, text: Text) -> dict[str, str] | None:
    """Letter to text, None for an open question."""
    if kind not in LISTED or "choices" not in text:
        return {letter: text[letter] for letter in string.ascii_uppercase if text.get(letter)} or None
    values = ast.literal_eval(text.get("choices") or "[]")
    return {string.ascii_uppercase[i]: str(value) for i, value in enumerate(values)} or None


def golds(kind: str, text: Text) -> list[str]:
    """The gold answers, each of which is right. MathVista has the letter in `answer_option` where `answer` is the choice's
    text; MMMU's open questions may have a list."""
    answer = text["answer"]
    if kind == "mathvista":
        return [text.get("answer_option") or answer]
    if kind == "mmmu" and answer.startswith("[") and not choices(kind, text):
        try:
            return [str(value) for value in ast.literal_eval(answer)] or [answer]
        except (ValueError, SyntaxError, TypeError):
            return [answer]
    return [answer]


def verdict(kind: str, text: Text, response: str) -> Verdict:
    """Whether the response is right. An answer of None means that the rules found none."""
    offered, right = choices(kind, text), golds(kind, text)
    found = _any(response, right, offered)
    if kind in _PLAIN:
        return found
    if (found.answer is None and found.rule == "none") or _mere_words(found, offered):
        last = _last_words(response, offered or {})
        if last is None:
            return replace(found, correct=False, answer=None, rule="none")
        found = _any(f"\\boxed{{{last}}}", right, offered)
        found = replace(found, rule=found.rule.replace("boxed", "last", 1))
    if kind == "mathvista" and not found.correct and not offered and found.answer:
        return _mathvista(found, text)
    return found


def _any(response: str, right: list[str], offered: Mapping[str, str] | None) -> Verdict:
    """The first verdict that is right, or else the first."""
    found = [judge(response, right[0], offered)]
    for gold in right[1:]:
        if found[-1].correct:
            break
        found.append(judge(response, gold, offered))
    return found[-1] if found[-1].correct else found[0]


def _mere_words(found: Verdict, offered: Mapping[str, str] | None) -> bool:
    """A short response to a question with choices that is none of them: "I choose B" is no answer as it stands."""
    return bool(offered) and found.rule.startswith(("bare", "phrase")) and found.answer not in (offered or {})


def _last_words(response: str, offered: Mapping[str, str]) -> str | None:
    """A choice named in the last line or the last sentences, or a last line that is nothing but a value with a digit."""
    tail = final_text(response)[0].strip()[-_LAST:]
    line = tail.rpartition("\n")[2].strip()
    answer, rule = extract(line, tuple(offered))
    if not offered:
        return answer if answer and rule == "bare" and line != tail and re.search(r"\d", answer) else None
    if answer and (rule == "letter" or answer in offered):
        return answer
    named = [match for pattern in _NAMED for match in pattern.finditer(tail) if match[1] in offered]
    return max(named, key=lambda match: match.start())[1] if named else None


def _mathvista(found: Verdict, text: Text) -> Verdict:
    """MathVista's own comparison: a float rounded to the row's precision, a list with or without its brackets.

    Source: normalize_extracted_answer of its evaluation; but an integer must be one, where that would cut off the decimals.
    """
    answer, gold = found.answer or "", text["answer"]
    if text.get("answer_type") == "float":
        value, wanted, digits = (read_quantity(t) for t in (answer, gold, text.get("precision") or ""))
        if value is None or wanted is None or digits is None or value.percent or not 0 <= digits.value <= 9:
            return found
        if round(value.value, int(digits.value)) == round(wanted.value, int(digits.value)):
            return replace(found, correct=True, rule=found.rule.partition("/")[0] + "/rounded")
    elif text.get("answer_type") == "list":
        one, other = (re.sub(r"\s", "", value).strip("[]()") for value in (answer, gold))
        if one == other:
            return replace(found, correct=True, rule=found.rule.partition("/")[0] + "/list")
    return found

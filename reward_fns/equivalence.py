"""Whether two short answers mean the same: as strings, as exact numbers, and only if need be by algebra."""

import re

from reward_fns.checker_pool import verify
from reward_fns.quantity import read_quantity, same_quantity

MAX_ALGEBRA = 300  # characters of an answer that is worth a look by computer algebra
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:left|right|displaystyle|big|Big|[,;!:> ])|\\\$|~")
_ASSIGNED = re.compile(r"[A-Za-z](?:_\{?\w\}?)?\s*=\s*(?!=)")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'’-]+[^\W\d_]+)*[.!]?")
# What makes computer algebra slow: powers of powers, long numbers, large factorials and exponents.
_TOWER = re.compile(
    r"\^.{0,40}\^|\*\*.{0,40}(?:\*\*|\^)|\d{40}|\d{3,}\s*!|!\s*!|(?:\^|\*\*)\s*\{?\s*[-+(]*\d{4}|\\(?:sum|prod|int|lim)"
)


def plain(text: str) -> str:
    """`text` without what only decorates it: dollar signs, \\text{}, \\left, spaces at the ends, a full stop."""
    text = text.strip().replace("$", "") if "\\$" not in text else text.replace("\\$", "").replace("$", "")
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2]
    for _ in range(3):
        text = _WRAPPER.sub(r"\1", text)
    text = _NOISE.sub(" ", text).replace("{,}", ",").strip().strip("*`").strip()
    return (text[:-1] if text.endswith(".") and not text.endswith("..") else text).rstrip()


def _key(text: str) -> str:
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", re.sub(r"\s+", " ", text))  # a space between two words or numbers stays
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").casefold()


def equivalent(answer: str, gold: str, *, thorough: bool = True) -> tuple[bool, str]:
    """Whether `answer` equals `gold`, and the rule that decided. Without `thorough`, computer algebra is left out.

    Costs microseconds for strings and numbers; algebra costs milliseconds, and never more than the checker's time
    limit.
    """
    mine, wanted = plain(answer), plain(gold)
    if not mine or not wanted:
        return False, "empty"
    if _key(mine) == _key(wanted):
        return True, "string"
    mine, wanted = _ASSIGNED.sub("", mine, count=1), _ASSIGNED.sub("", wanted, count=1)
    if _key(mine) == _key(wanted):
        return True, "string"
    number, wanted_number = read_quantity(mine), read_quantity(wanted)
    if number is not None and wanted_number is not None:
        return same_quantity(number, wanted_number), "number"
    if _WORDS.fullmatch(mine) or _WORDS.fullmatch(wanted):
        return False, "words"
    if max(len(mine), len(wanted)) > MAX_ALGEBRA or _TOWER.search(mine):
        return False, "refused"
    if not thorough:
        return False, "different"
    verdict = verify(wanted, mine)
    return bool(verdict), "algebra" if verdict is not None else "timeout"

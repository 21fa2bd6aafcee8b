r"""Whether two short answers mean the same: as text, as exact numbers, part by part, and only if need be by algebra."""

import re
from fractions import Fraction

from reward_fns.checker_pool import Algebra
from reward_fns.latex import costly, latex
from reward_fns.quantity import Quantity, read_quantity, rounds, same_quantity
from reward_fns.structure import VARIABLE, read, same_parts, split
from reward_fns.text import same_text, tidy, yes_no
from reward_fns.units import split_unit

DEPTH = 4  # of answers within answers, an interval of fractions say

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,'-]+[^\W\d_]+)*[.!?]?")
_LEFT_SIDE = re.compile(r"[^\d+*/^=<>,]{1,40}")
_CALCULATION = re.compile(
    r"[\d\s.()+*/^{}-]*[\d)}]\s*(?:[-+*/^]|\\(?:times|cdot|frac|div))[^A-Za-z=]*(?:\\[a-z]+[^A-Za-z=]*)*"
)
_LETTER = re.compile(r"\(?([A-Z])[).:](?:\s.*)?|\(([A-Z])\)", re.DOTALL)
_POINT = re.compile(r"[A-Z]'?\s*(\(.+,.+\))", re.DOTALL)
_TIME = re.compile(r"(\d{1,2}):(\d{2})\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_CONSTANT = re.compile(r"\\(?:sqrt|pi|frac|sin|cos|tan|log|ln|exp)(?![A-Za-z])|(?<![A-Za-z])e(?![A-Za-z])")


def equivalent(answer: str, gold: str, *, thorough: bool = True, algebra: Algebra | None = None) -> tuple[bool, str]:
    """Whether `answer` equals `gold`, and the rule that decided. Without `thorough`, computer algebra is left out;
    `algebra` is one that several comparisons share.

    Costs microseconds for text and numbers, milliseconds for algebra, and never more than the algebra's time limit.
    """
    algebra = (algebra or Algebra()) if thorough else None
    equal, rule = _equal(tidy(answer), tidy(gold), algebra, 0)
    if not equal and algebra and algebra.refused:
        return False, "refused"
    return equal, rule


def _equal(mine: str, wanted: str, algebra: Algebra | None, depth: int) -> tuple[bool, str]:
    if not mine or not wanted:
        return False, "empty"
    if same_text(mine, wanted):
        return True, "string"
    if (said := yes_no(wanted)) and len(wanted.split()) == 1:
        return yes_no(mine) == said, "yes/no"
    if len(wanted) == 1 and wanted.isupper() and (named := _LETTER.fullmatch(mine)):
        return wanted in named.groups(), "letter"
    if (time := _same_time(mine, wanted)) is not None:
        return time, "time"
    mine, wanted = _unnamed(mine, wanted), _unnamed(wanted, mine)
    number, wanted_number = read_quantity(mine), read_quantity(wanted)
    if number is not None and wanted_number is not None:
        return same_quantity(number, wanted_number), "number"
    if depth < DEPTH:
        decided = _by_parts(mine, wanted, algebra, depth)
        if decided is not None:
            return decided
        decided = _by_sides(mine, wanted, algebra, depth)
        if decided is not None:
            return decided
    if mine.casefold() == wanted.casefold():
        return True, "string"
    if _WORDS.fullmatch(mine) or _WORDS.fullmatch(wanted):
        return False, "words"
    (mine, unit), (wanted, wanted_unit) = split_unit(mine), split_unit(wanted)
    if unit and wanted_unit and unit != wanted_unit:
        return False, "unit"
    if unit or wanted_unit:
        return _equal(mine, wanted, algebra, depth)
    if algebra is None:
        return False, "different"
    return _by_algebra(mine, wanted, number, wanted_number, algebra)


def _unnamed(text: str, other: str) -> str:
    """A point without its name, P(0, 5), beside coordinates alone."""
    point = _POINT.fullmatch(text)
    return point[1] if point and other.startswith("(") else text


def _same_time(mine: str, wanted: str) -> bool | None:
    """Of times of day, if one says a.m. or p.m.: the other is of 24 hours, unless it is the gold answer's, which may leave that
    open. None for anything else, a ratio too."""
    ours, theirs = _TIME.fullmatch(mine), _TIME.fullmatch(wanted)
    if ours is None or theirs is None or not (ours[3] or theirs[3]):
        return None

    def minutes(time: re.Match[str]) -> int:
        hour = int(time[1]) % 12 + 12 * (time[3].casefold() == "p") if time[3] else int(time[1])
        return hour * 60 + int(time[2])

    apart = minutes(ours) - minutes(theirs)
    return apart == 0 or (theirs[3] is None and apart % 720 == 0)


def _by_parts(mine: str, wanted: str, algebra: Algebra | None, depth: int) -> tuple[bool, str] | None:
    parts, wanted_parts = read(mine), read(wanted)
    if parts is None and wanted_parts is None:
        return None

    def same(one: str, other: str) -> bool:
        return _equal(one, other, algebra, depth + 1)[0]

    if parts is not None and wanted_parts is not None:
        return bool(same_parts(parts, wanted_parts, same)), wanted_parts.kind
    # A set of one is its element; nothing else of several parts equals a single thing.
    for whole, single in ((parts, wanted), (wanted_parts, mine)):
        if whole is not None and whole.kind == "set" and len(whole.items) == 1 and isinstance(whole.items[0], str):
            return same(whole.items[0], single), "set"
    if (parts is not None and parts.kind in ("list", "system")) or (
        wanted_parts is not None and wanted_parts.kind == "list"
    ):
        sided = wanted if parts is not None else mine
        return None if "=" in sided else (False, "list")
    return None


def _sides(text: str) -> list[str]:
    return split(text, ("=", "≈", "\\approx")) if "=" in text or "≈" in text or "\\approx" in text else [text]


def _is_name(text: str) -> bool:
    """x, f(x), \\theta, \\angle ABC, "the area": what an answer may be introduced by."""
    return _LEFT_SIDE.fullmatch(text) is not None and re.search(r"\\(?:frac|sqrt|sin|cos|tan|log|ln)", text) is None


def _by_sides(mine: str, wanted: str, algebra: Algebra | None, depth: int) -> tuple[bool, str] | None:
    """Equations: a name or a calculation before "=" is decoration unless the gold answer has another name there."""
    left, right = _sides(mine), _sides(wanted)
    if (len(left) == 1 and len(right) == 1) or "" in left or "" in right:
        return None
    if len(right) == 1:
        fine = _is_name(left[0]) or _CALCULATION.fullmatch(left[0]) is not None
        return _equal(left[-1], wanted, algebra, depth + 1) if fine else None
    if len(left) == 1:
        return _equal(mine, right[-1], algebra, depth + 1) if _is_name(right[0]) else None
    if _is_name(left[0]) and _is_name(right[0]):
        variables = [bool(VARIABLE.fullmatch(side)) and side != "y" for side in (left[0], right[0])]
        if same_text(left[0], right[0]) or not any(variables):
            return _equal(left[-1], right[-1], algebra, depth + 1)
        if all(VARIABLE.fullmatch(s) for s in (left[0], right[0])) and not re.search(r"[A-Za-z]", left[-1] + right[-1]):
            return False, "equation"
    if algebra is None or len(left) != 2 or len(right) != 2 or costly(mine) or costly(wanted):
        return None
    differences = [f"{latex(a)}-({latex(b)})" for a, b in (right, left)]
    return bool(algebra.ask("proportional", *differences)), "equation"


def _by_algebra(
    mine: str, wanted: str, number: Quantity | None, wanted_number: Quantity | None, algebra: Algebra
) -> tuple[bool, str]:
    if costly(mine) or costly(wanted):
        return False, "refused"  # this text alone: the algebra is left for what else it is shared with
    # A number against a constant such as 2\\sqrt{3}: by value, which is asked for once per constant.
    for known, text, is_answer in ((number, wanted, True), (wanted_number, mine, False)):
        if known is not None and _CONSTANT.search(text):
            exact = algebra.ask("value", latex(text))
            if algebra.refused:
                return False, "refused"
            if exact is not None and _far(exact):
                return False, "value"
            if exact is not None and not _equals(known, Fraction(exact)):
                return _stands_for(known, Fraction(exact), known_is_answer=is_answer), "value"
    return bool(algebra.ask("same", latex(wanted), latex(mine))), "algebra"


def _far(exact: str) -> bool:
    """Whether a constant's power of ten has four digits or more: no number that can be read has (`quantity.MAX_EXPONENT`), and
    writing it out as a fraction could take for ever."""
    return len(exact.partition("e")[2].lstrip("+-")) > 3


def _number(known: Quantity) -> Fraction:
    return known.value / 100 if known.percent else known.value


def _equals(known: Quantity, exact: Fraction) -> bool:
    """As far as 30 digits tell."""
    return abs(_number(known) - exact) <= abs(exact) * Fraction(1, 10**25)


def _stands_for(known: Quantity, exact: Fraction, *, known_is_answer: bool) -> bool:
    """Whether a decimal stands for the constant as its rounding, or is the gold answer that the constant rounds to."""
    if known_is_answer:
        return rounds(known, exact)
    decimals = known.decimals or 0
    return decimals >= 2 and abs(_number(known) - exact) <= Fraction(1, 2 * 10**decimals)

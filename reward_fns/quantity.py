r"""Read numbers as people and LaTeX write them, exactly: 1,234  -3.5  1\frac{7}{12} 50%  1.2\times10^{3}  7 cm  0.\overline{3}.

Two decimals of an irrational or long value are a rounding only with three significant digits: 3.14 stands for \pi, 0.33
not for 1/3.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from reward_fns.units import Unit, read_unit

MAX_LENGTH = 80  # characters of a number with its unit
MAX_EXPONENT = 300

_DEC = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRAC = r"\\frac\s*(?:\{([^{}]{1,20})\}|(\d))\s*(?:\{([^{}]{1,20})\}|(\d))"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?\s*)(?:
      (?P<grouped>\d{{1,3}}(?:([ ,])\d{{3}})(?:\3\d{{3}})*(?:\.\d+)?)(?![\d])
    | (?P<mantissa>{_DEC})\s*(?:[eE]|(?:\\times|\\cdot|\*|x|X)\s*10\s*(?:\^|\*\*)\s*\{{?)\s*(?P<exponent>[-+]?\d{{1,3}})\s*\}}?
    | (?P<base>\d{{1,6}})\s*(?:\^|\*\*)\s*\{{?\s*(?P<power>[-+]?\d{{1,3}})\s*\}}?
    | (?P<start>\d*\.\d*)\\(?:overline|bar)\s*\{{(?P<cycle>\d{{1,12}})\}}
    | (?P<whole>\d+)?\s*{_FRAC}
    | (?:(?P<mixed>\d+)\s+)?(?P<top>{_DEC})\s*/\s*(?P<bottom>-?{_DEC})
    | (?P<decimal>{_DEC})(?P<dots>\.\.\.|\\[lc]?dots)?
    )""",
    re.VERBOSE | re.ASCII,
)  # fmt: skip
_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALED = re.compile(rf"\s+({'|'.join(_SCALE)})s?(?![a-z])", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:%|percent(?![a-z])|per cent(?![a-z]))", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """An exact number. decimals: digits after the point (None: no plain decimal). digits: significant ones."""

    value: Fraction
    decimals: int | None = None
    digits: int = 0
    percent: bool = False
    unit: Unit | None = None


def _fraction(text: str) -> Fraction | None:
    text = text.strip()
    if not re.fullmatch(rf"[-+]?\s*{_DEC}", text, re.ASCII):
        return None
    return Fraction(text.replace(" ", ""))


def _ratio(top: str, bottom: str) -> Fraction | None:
    upper, lower = _fraction(top), _fraction(bottom)
    return upper / lower if upper is not None and lower else None


def _value(match: re.Match[str]) -> tuple[Fraction | None, int | None, int]:
    """(value without the sign, decimals, significant digits) of one number."""
    found = match.groupdict()
    if found["decimal"] or found["grouped"]:
        text = re.sub(r"[ ,]", "", found["decimal"] or found["grouped"])
        return Fraction(text), len(text.partition(".")[2]), len(text.replace(".", "").lstrip("0"))
    if found["mantissa"]:
        exponent = int(found["exponent"])
        return (
            (Fraction(found["mantissa"]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None),
            None,
            0,
        )
    if found["base"]:
        base, power = int(found["base"]), int(found["power"])
        fine = abs(power) * len(found["base"]) <= MAX_EXPONENT and (base or power > 0)
        return (Fraction(base) ** power if fine else None), None, 0
    if found["cycle"]:
        start, cycle = found["start"], found["cycle"]
        shift = 10 ** len(start.partition(".")[2])
        head = Fraction(start if len(start) > 1 else "0")
        return head + Fraction(int(cycle), (10 ** len(cycle) - 1) * shift), None, 0
    if found["top"]:
        ratio, whole = _ratio(found["top"], found["bottom"]), found["mixed"]
    else:
        parts = [group for group in _frac_groups(match) if group is not None]
        ratio, whole = _ratio(parts[0], parts[1]), found["whole"]
    if ratio is None or (whole and ratio < 0):
        return None, None, 0
    return ratio + int(whole or 0), None, 0


def _frac_groups(match: re.Match[str]) -> tuple[str | None, ...]:
    first = match.re.groupindex["whole"] + 1
    return tuple(match.group(index) for index in range(first, first + 4))


def _one(text: str) -> tuple[Quantity, str] | None:
    """The number at the start of `text`, without unit, and what follows it."""
    match = _NUMBER.match(text)
    if not match:
        return None
    value, decimals, digits = _value(match)
    if value is None:
        return None
    rest = text[match.end() :]
    if scale := _SCALED.match(rest):
        value, decimals, rest = value * _SCALE[scale[1].lower()], None, rest[scale.end() :]
    return Quantity(-value if "-" in match["sign"] else value, decimals, digits), rest


def read_quantity(text: str) -> Quantity | None:
    """The number that `text` (tidied) is, with at most a percent sign or a unit behind it; None if it is anything else."""
    if not text or len(text) > MAX_LENGTH or not any("0" <= c <= "9" for c in text):
        return None
    text = re.sub(r"^([-+]?)\s*(dollar|euro|pound|yen)\s+(.*)$", r"\1\3 \2", text)
    sign = 1
    while (match := re.fullmatch(r"([-+]?)\s*\(([^()]*)\)", text)) or (
        match := re.fullmatch(r"([-+]?)\{([^{}]*)\}", text)
    ):
        sign, text = -sign if match[1] == "-" else sign, match[2].strip()
    found = _one(text)
    if found is None:
        return None
    number, rest = found
    number = Quantity(sign * number.value, number.decimals, number.digits)
    if not rest.strip():
        return number
    if percent := _PERCENT.match(rest):
        return None if rest[percent.end() :].strip() else Quantity(number.value, number.decimals, number.digits, True)
    return _measured(number, rest)


def _measured(number: Quantity, rest: str) -> Quantity | None:
    """With a unit, or a sum of parts in units of one kind: 2 h 30 min."""
    pieces = re.match(r"([^\d]+?)\s+(?:and\s+)?(\d.*)$", rest)
    unit = read_unit(pieces[1] if pieces else rest, spaced=rest[0].isspace())
    if unit is None:
        return None
    measured = Quantity(number.value, number.decimals, number.digits, False, unit)
    if not pieces:
        return measured
    other = read_quantity(pieces[2])
    if other is None or other.unit is None or other.unit.powers != unit.powers or number.value < 0:
        return None
    total = number.value * unit.factor + other.value * other.unit.factor
    return Quantity(total / unit.factor, None, 0, False, unit)


def rounds(short: Quantity, value: Fraction) -> bool:
    """Whether the decimal `short` is `value` rounded, with enough digits to mean it."""
    return (
        short.decimals is not None
        and short.decimals >= 2
        and short.digits >= 3
        and abs(short.value - value) <= Fraction(1, 2 * 10**short.decimals)
    )


def _close(answer: Quantity, gold: Quantity) -> bool:
    if answer.value == gold.value:
        return True
    exact_gold = gold.decimals is None or (answer.decimals is not None and gold.decimals > answer.decimals)
    if exact_gold and rounds(answer, gold.value):
        return True
    finer = answer.decimals is None or (gold.decimals is not None and answer.decimals > gold.decimals)
    within = gold.decimals is not None and gold.decimals >= 2 and finer
    return within and abs(answer.value - gold.value) <= Fraction(1, 2 * 10 ** (gold.decimals or 0))


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Equal exactly or up to rounding, after units and percent signs; one of each may be missing (reward_fns/README.md)."""
    if answer.unit and gold.unit:
        if answer.unit.powers != gold.unit.powers:
            return False
        if answer.unit.factor != gold.unit.factor:
            factor = answer.unit.factor / gold.unit.factor
            return _close(Quantity(answer.value * factor), Quantity(gold.value, gold.decimals, gold.digits))
        return _close(answer, gold)
    if answer.percent == gold.percent or answer.unit or gold.unit:
        return _close(answer, gold)
    if _close(answer, gold) and abs(gold.value) > 1:
        return True  # "what percentage" is answered with or without the sign
    hundredth, other = (answer, gold) if answer.percent else (gold, answer)
    moved = None if hundredth.decimals is None else hundredth.decimals + 2
    scaled = Quantity(hundredth.value / 100, moved, hundredth.digits)
    return _close(scaled, other) if answer.percent else _close(other, scaled)

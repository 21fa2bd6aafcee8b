"""Read numbers as people and LaTeX write them: 1,234  -3.50  7/12  \\frac{7}{12}  50\\%  1.2\\times10^{3}  7 cm."""

import re
from dataclasses import dataclass
from fractions import Fraction

_DECIMAL = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?"
_POWER = re.compile(rf"({_DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*|×)10\^\{{?)([-+]?\d{{1,3}})\}}?")
_FRACTION = re.compile(
    rf"([-+]?)(?:\\[dt]?frac\{{({_DECIMAL})\}}\{{({_DECIMAL})\}}|\\[dt]?frac(\d)(\d)|({_DECIMAL})/({_DECIMAL}))"
)
_MIXED = re.compile(r"([-+]?\d+)(\\[dt]?frac(?:\{\d+\}\{\d+\}|\d\d))")
# A unit needs a space before it ("7x" is no 7), a degree sign does not.
_UNIT = re.compile(r"(?:\s+(?:[A-Za-zµμΩ]{2,20}|[mgsLNJWVKAh])(?:\^?\{?[23]\}?)?|\s*(?:°|\^\{?\\circ\}?|\\degree))$")
_MAX = 80  # characters


@dataclass(frozen=True)
class Quantity:
    """An exact number. decimals: digits written after the point (None: not a plain decimal). percent: a % followed."""

    value: Fraction
    decimals: int | None
    percent: bool


def _decimal(text: str) -> Fraction | None:
    if not text or not any(character.isdigit() for character in text):
        return None
    return Fraction(text.replace(",", "") if text[-1] != "." else text[:-1].replace(",", ""))


def _read(text: str) -> tuple[Fraction, int | None] | None:
    if re.fullmatch(_DECIMAL, text) and (value := _decimal(text)) is not None:
        return value, len(text.partition(".")[2])
    if (match := _POWER.fullmatch(text)) and (value := _decimal(match[1])) is not None:
        return value * Fraction(10) ** int(match[2]), None
    if match := _FRACTION.fullmatch(text):
        groups = [group for group in match.groups()[1:] if group is not None]
        top, bottom = _decimal(groups[0]), _decimal(groups[1])
        if top is None or not bottom:
            return None
        return (-1 if match[1] == "-" else 1) * top / bottom, None
    if (match := _MIXED.fullmatch(text)) and (part := _read(match[2])):
        whole = Fraction(match[1])
        return whole + (-part[0] if match[1].startswith("-") else part[0]), None
    return None


def read_quantity(text: str) -> Quantity | None:
    """The number that `text` is, with at most a percent sign or a unit behind it; None when it is anything else."""
    if not text or len(text) > _MAX or not any(character.isdigit() for character in text):
        return None
    text = text.replace("−", "-").strip()
    percent = text.endswith(("%", "percent"))
    text = text.removesuffix("percent").rstrip("% \\") if percent else _UNIT.sub("", text)
    if re.search(r"[\d.]\s+[\d.]", text):
        return None  # "1 2" is not 12
    read = _read(re.sub(r"\s+|\\[,;!: ]", "", text))
    return None if read is None else Quantity(read[0], read[1], percent)


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Equal exactly, up to a percent sign, or up to rounding: a longer answer may round to a gold value of two or more
    decimals, and an answer of four or more decimals may be a rounding of an exact gold value."""
    if answer.value == gold.value:
        return True
    if answer.percent != gold.percent:
        scaled = Quantity(answer.value / 100 if answer.percent else answer.value, answer.decimals, False)
        other = gold.value / 100 if gold.percent else gold.value
        return scaled.value == other
    if answer.decimals is None:
        return False
    if gold.decimals is None:
        return answer.decimals >= 4 and round(gold.value, answer.decimals) == answer.value
    return 2 <= gold.decimals < answer.decimals and round(answer.value, gold.decimals) == gold.value

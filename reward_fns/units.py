"""Units of measurement behind a number, as a factor and powers of base units: 5 km = 5000 m, 2 h = 120 min.

A word that is no known unit ("apples") is a label: it has to be the same word, in any number, or be absent on one side.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

# Spelling -> (base unit, factor); prefixes are added below where they are customary.
_BASE: dict[str, tuple[str, Fraction | int]] = {
    "m": ("m", 1), "g": ("g", 1), "s": ("s", 1), "L": ("m3", Fraction(1, 1000)), "N": ("N", 1), "J": ("J", 1),
    "W": ("W", 1), "V": ("V", 1), "A": ("A", 1), "Hz": ("Hz", 1), "Pa": ("Pa", 1), "mol": ("mol", 1), "K": ("K", 1),
    "C": ("C", 1), "F": ("F", 1), "Ω": ("Ω", 1), "eV": ("eV", 1), "T": ("T", 1), "B": ("B", 1),
    "min": ("s", 60), "h": ("s", 3600), "day": ("s", 86400), "week": ("s", 604800), "month": ("month", 1),
    "year": ("month", 12), "°": ("°", 1), "rad": ("rad", 1), "°C": ("°C", 1), "°F": ("°F", 1),
    "inch": ("inch", 1), "foot": ("inch", 12), "yard": ("inch", 36), "mile": ("inch", 63360),
    "pound": ("pound", 1), "ounce": ("ounce", 1), "gallon": ("gallon", 1), "euro": ("euro", 1), "yen": ("yen", 1),
    "cent": ("dollar", Fraction(1, 100)), "dollar": ("dollar", 1), "ton": ("g", 1_000_000), "hectare": ("m2", 10_000),
    "cc": ("m3", Fraction(1, 1_000_000)),
}  # fmt: skip
_PREFIX = {
    "k": Fraction(1000), "c": Fraction(1, 100), "m": Fraction(1, 1000), "d": Fraction(1, 10), "μ": Fraction(1, 10**6),
    "n": Fraction(1, 10**9), "M": Fraction(10**6), "G": Fraction(10**9),
}  # fmt: skip
_PREFIXED = {"m": "kcmdμn", "g": "kmμ", "s": "mμn", "L": "mcdμ", "N": "kM", "J": "kMm", "W": "kMGm", "V": "km", "A": "mμ",
             "Hz": "kMG", "Pa": "kMG", "mol": "m", "Ω": "kM", "eV": "kMG", "B": "kMG", "C": "mμn", "F": "mμn"}  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "second": "s", "sec": "s", "liter": "L", "litre": "L", "l": "L",
    "newton": "N", "joule": "J", "watt": "W", "volt": "V", "ampere": "A", "amp": "A", "hertz": "Hz", "pascal": "Pa",
    "kelvin": "K", "coulomb": "C", "farad": "F", "ohm": "Ω", "tesla": "T", "byte": "B", "minute": "min", "hour": "h",
    "hr": "h", "yr": "year", "degree": "°", "deg": "°", "radian": "rad", "feet": "foot", "ft": "foot", "in": "inch",
    "inches": "inch", "yd": "yard", "mi": "mile", "lb": "pound", "lbs": "pound", "oz": "ounce", "tonne": "ton",
    "ml": "mL", "USD": "dollar", "EUR": "euro", "¢": "cent", "celsius": "°C",
    "fahrenheit": "°F", "ha": "hectare", "mole": "mol",
}  # fmt: skip
_LONG = {"kilo": "k", "centi": "c", "milli": "m", "deci": "d", "micro": "μ", "nano": "n", "mega": "M", "giga": "G"}
_NOTHING = {"unit", "units"}  # "12 square units" is 12
_NO_LABEL = {"or", "and", "to", "pi", "of", "in", "by", "is", "the", "not", "about", "if", "mod", "choose", "over", "times",
             "plus", "minus", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "frac"}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TOKEN = re.compile(r"[A-Za-zμΩ°¢]+|/|\^\s*\{?\s*(-?[1-4])\s*\}?|[·*]|\s+|.")


@dataclass(frozen=True)
class Unit:
    """factor: how many base units; powers: (base unit or label, power), sorted."""

    factor: Fraction
    powers: tuple[tuple[str, int], ...]


def _table() -> dict[str, tuple[str, Fraction]]:
    table = {name: (base, Fraction(factor)) for name, (base, factor) in _BASE.items()}
    for name, prefixes in _PREFIXED.items():
        base, factor = _BASE[name]
        table |= {p + name: (base, _PREFIX[p] * factor) for p in prefixes}
    for word, name in _NAMES.items():
        table[word] = table[name]
        if len(word) > 3 and name in _PREFIXED:
            table |= {
                long + word: (table[name][0], _PREFIX[p] * table[name][1])
                for long, p in _LONG.items()
                if p in _PREFIXED[name]
            }
    return table


_UNITS = _table()
_POWERED = {"m2": ("m", 2), "m3": ("m", 3)}  # hectares and litres are areas and volumes


def _known(word: str) -> tuple[str, Fraction] | None:
    for form in (word, word.rstrip("."), word.removesuffix("s") if len(word) > 3 else word):
        if form in _UNITS:
            return _UNITS[form]
    lowered = word.lower()
    for form in (lowered, lowered.removesuffix("s")):
        if len(form) > 2 and form in _UNITS:
            return _UNITS[form]
    return None


def _label(word: str) -> str | None:
    if len(word) < 2 or word.lower() in _NO_LABEL or not word.isalpha():
        return None
    return "label " + word.lower().removesuffix("s")


def read_unit(text: str, *, spaced: bool) -> Unit | None:
    """The unit that `text` spells; None when it is none. spaced: a space stood before it, so that one letter ("m") or a
    word may be meant as a unit ("7x" and "2a" are none)."""
    text = text.replace("\\cdot", "·").strip()
    if not text or len(text) > 40:
        return None
    factor, powers, direction, area, last = Fraction(1), dict[str, int](), 1, 1, None
    for token in _TOKEN.finditer(text):
        word = token[0]
        if token[1] is not None:
            if last is None:
                return None
            name, one, times = last
            factor *= one ** (times * (int(token[1]) - 1))
            powers[name] = powers.get(name, 0) + times * (int(token[1]) - 1)
            last = None
        elif word == "/" or word.lower() == "per":
            direction = -1
        elif word.lower() in ("square", "sq"):
            area = 2
        elif word.lower() in ("cubic", "cu"):
            area = 3
        elif word.lower() in _NOTHING:
            area, last = 1, ("", Fraction(1), 0)  # "units^2" is as little as "square units"
        elif word.isspace() or word in "·*.":
            continue
        else:
            known = _known(word)
            if known and not spaced and len(word) == 1 and word != "°" and word != "Ω":
                return None
            if known is None:
                label = _label(word) if spaced else None
                if label is None:
                    return None
                known = (label, Fraction(1))
            name, one = known
            name, power = _POWERED.get(name, (name, 1))
            times = direction * area
            factor *= one**times
            powers[name] = powers.get(name, 0) + times * power
            last, area = (name, one, times), 1
    if sum(name.startswith("label ") for name in powers) > 3:
        return None
    return Unit(factor, tuple(sorted((name, power) for name, power in powers.items() if power)))


def split_unit(text: str) -> tuple[str, Unit | None]:
    """`36\\pi cm^3` as what stands before the unit and the unit; only units that are known, after a space."""
    words = text.split(" ")
    for count in (3, 2, 1):
        if len(words) > count:
            unit = read_unit(" ".join(words[-count:]), spaced=True)
            # "m g" is a product of variables, "10\\sqrt{3} m" a length.
            clear = len(words[-count]) > 1 or not re.search("[A-Za-z]", _COMMAND.sub("", "".join(words[:-count])))
            if unit is not None and clear and not any(name.startswith("label ") for name, _ in unit.powers):
                return " ".join(words[:-count]), unit
    return text, None

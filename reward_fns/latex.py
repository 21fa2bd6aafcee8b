r"""Plain notation as LaTeX, for the algebra: sqrt(2)/2, 2*pi, x**2, (a+b)^(1/2). And what is not worth its time."""

import re

MAX_ALGEBRA = 300  # characters of an answer that is worth a look by computer algebra

_NAMES = r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp"
_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)")
_BARE_ROOT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_BARE_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_NAMES})(?![A-Za-z])")
_GREEK = re.compile(r"(?<![A-Za-z\\])(pi|theta|alpha|beta|infty)(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"sin|cos|tan|cot|sec|csc")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\?[A-Za-z]+)\s*°")
_POWER = re.compile(r"\^\s*\(([^()]*)\)")
_LONG_POWER = re.compile(r"\^\s*(-?\d{2,})")
# What makes computer algebra slow: powers of powers, long numbers, large factorials, binomials and exponents.
_COSTLY = re.compile(
    r"\^\s*-?[\w.]+\s*\^|\^\s*[{(][^{}()]*(?:\^|[{(][^{}()]*\^)|\d{40}|\d{4,}\s*\}?\s*\)?\s*!|!\s*\)*\s*!|\^\s*\{?\s*[-+(]*\d{4}"
    r"|\\binom.{0,40}\d{5}|\\(?:sum|prod|i*int|lim|sup|inf|max|min|Gamma|def|gdef|let|newcommand|input|write|include|csname)(?![a-z])"
)


def latex(text: str) -> str:
    """`text` (tidied) with functions, roots and powers as LaTeX writes them."""
    text = text.replace("**", "^")
    degrees = r"(\1\\cdot\\frac{\\pi}{180})" if _TRIGONOMETRY.search(text) else r"\1"
    text = _DEGREES.sub(degrees, text)
    for _ in range(3):
        text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _BARE_FUNCTION.sub(r"\\\1", text)
    text = _GREEK.sub(r"\\\1 ", text)
    text = _POWER.sub(r"^{\1}", text)
    text = _LONG_POWER.sub(r"^{\1}", text)
    return re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)


def costly(text: str) -> bool:
    """Whether computer algebra would only lose its time on `text`, or read what is no mathematics."""
    text = text.replace("**", "^")
    deep = max(text.count("("), text.count("{"), text.count("[")) > 40
    return len(text) > MAX_ALGEBRA or deep or _COSTLY.search(text) is not None

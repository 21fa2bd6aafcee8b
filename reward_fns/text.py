r"""One spelling for a short answer: Unicode to LaTeX or ASCII, decoration off. Nothing here knows what an answer means."""

import re
import unicodedata

# What NFKC would spoil (² becomes 2) or leaves alone, in the spelling that the rest of the checker reads.
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "∕": "/", "⁄": "/", "√": r"\sqrt ", "∶": ":", "Ω": "Ω",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "±": r"\pm ", "º": "°", "˚": "°", "⟨": r"\langle ",
    "⟩": r"\rangle ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "’": "'", "‘": "'", "“": '"', "”": '"',
    "µ": "μ", "…": "...", "€": " euro ", "£": " pound ", "¥": " yen ", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "，": ",", "。": ".",
}  # fmt: skip
_TRANSLATED = str.maketrans(_SYMBOLS)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_ROOT = re.compile(r"√\s*(?:(\d+|[A-Za-z])|\(([^()]*)\))")
_VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|bm|boldsymbol|operatorname\*?|boxed)\s*"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad|space)(?![A-Za-z])|\\[,;!:>]|(?<!\\)\\ |~"
)
_DEGREES = re.compile(r"\^\s*\{?\s*(?:\\circ|°)(?:\s*\})?|\\degrees?(?![A-Za-z])|\\circ(?![A-Za-z])")
_SPELLED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"^\s*(?:≈|\\(?:approx|simeq)(?![A-Za-z]))"), " "),
    (re.compile(r"\\Omega(?![A-Za-z])"), "Ω"),
    (re.compile(r"\\mu(?![A-Za-z])\s*(?=[a-zA-Z])"), "μ"),
)
_DOLLAR = re.compile(r"\\\$(?=\s*[\d.])")
_MARKED = re.compile(r"\*\*(.+?)\*\*|__(.+?)__|`(.+?)`", re.DOTALL)
YES_NO = {"yes": "yes", "no": "no", "true": "true", "false": "false"}
_FIRST_WORD = re.compile(r"([a-z]+)(?:$|[.,;:!]|\s+[-(])")


def tidy(text: str) -> str:
    """`text` without what only decorates it: dollar signs, \\text{}, \\left, spaces, a full stop; symbols as LaTeX."""
    if not text.isascii():
        text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
        text = _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text.translate(_TRANSLATED))
        text = unicodedata.normalize("NFKC", _VULGAR.sub(" ", text)).translate(_TRANSLATED)
        text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cs", "Co"))
    text = _DOLLAR.sub(" dollar ", text).replace("\\$", "").replace("$", "").strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2]
    for _ in range(3):
        text = _WRAPPER.sub(r" \1 ", text)
    text = _SIZES.sub(" ", text)
    text = _DEGREES.sub("°", text)
    for pattern, spelling in _SPELLED:
        text = pattern.sub(spelling, text)
    if marked := _MARKED.fullmatch(text.strip()):
        text = next(group for group in marked.groups() if group is not None)
    text = " ".join(text.split()).strip("\"'` ")
    while text.endswith((".", ",", ";")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def key(text: str) -> str:
    """`text`, tidied before, without spaces and braces that mean nothing in LaTeX; a space between two words stays."""
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)
    text = re.sub(r"\{(\d)\}", r"\1", text)
    return re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)


def same_text(one: str, other: str) -> bool:
    """Equal letter for letter; words also in another case. Signs glued to words ("Yes!") don't count."""
    mine, wanted = key(one), key(other)
    if mine == wanted:
        return True
    if any(c.isdigit() or c in "\\^_=<>+/*" for c in mine + wanted):
        return False
    return mine.casefold().strip("!?\"'() ") == wanted.casefold().strip("!?\"'() ") != ""


def yes_no(text: str) -> str | None:
    """yes, no, true or false when `text` says so first: "No, it is not." The rest of the sentence doesn't count."""
    match = _FIRST_WORD.match(text.casefold())
    return YES_NO.get(match[1]) if match else None

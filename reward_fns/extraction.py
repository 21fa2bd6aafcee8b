"""Find the final answer in a response: the last \\boxed{}, of <answer>, after "answer is", or a lone letter."""

import re
from dataclasses import dataclass

MAX_RESPONSE = 400_000  # characters, well above 24k tokens
MAX_ANSWER = 1_000  # a longer "answer" is none

_TOKEN = re.compile(r"(\\f?boxed\s*\{)|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"answer(?:\s+is|\s*:|\*\*:?)(?:\s*:)?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|,?\s(?:because|since|which|where)\s")
_LAST_OPTION = re.compile(r"(?:option|choice)\s+\(?([A-Z])\)?[.!]?$", re.IGNORECASE)
_YES_NO = re.compile(r"\s*(?:\*\*)?(yes|no)(?:\*\*)?[,.!;]\s", re.IGNORECASE)
_MARKS = " \t\n*_`$"


@dataclass(frozen=True)
class Box:
    r"""One outermost \boxed{}: where it starts, and its content and end, None when its brace is never closed."""

    start: int
    content: str | None
    end: int | None


def boxes(text: str) -> list[Box]:
    r"""Every outermost \boxed{} of `text` in order, in one pass over its braces. Escaped braces do not count."""
    found: list[Box] = []
    stack: list[tuple[int, int] | None] = []  # open braces; of a box its start and that of its content
    for token in _TOKEN.finditer(text):
        if token[1]:
            stack.append((token.start(), token.end()))
        elif token[0] == "{":
            stack.append(None)
        elif token[0] == "}" and stack and (opened := stack.pop()):
            while found and found[-1].start > opened[0]:
                found.pop()  # a box within this one
            found.append(Box(opened[0], text[opened[1] : token.start()].strip(), token.end()))
    found += [Box(opened[0], None, None) for opened in stack if opened]
    return sorted(found, key=lambda box: box.start)


def final_text(response: str) -> tuple[str, bool]:
    """What follows the last </think> (all when there is none), and whether a <think> is still open there."""
    tail = response.rpartition("</think>")[2]
    return tail, "<think>" in tail


def _tagged(text: str) -> str | None:
    lowered = text.lower() if len(text.lower()) == len(text) else text  # some letters change length
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def _after_phrase(text: str) -> str | None:
    last = None
    for match in _PHRASE.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() : last.end() + MAX_ANSWER]
    stop = _SENTENCE_END.search(rest)
    return (rest[: stop.start()] if stop else rest).strip(_MARKS) or None


def _lone(text: str, letters: tuple[str, ...]) -> tuple[str | None, str]:
    """A response that is nothing but its answer: one short line, or a choice's letter with or without its text."""
    line = text.strip(_MARKS)
    if letters and (match := _LAST_OPTION.search(line)) and match[1] in letters:
        return match[1], "letter"
    if letters and re.match(rf"[(\[]?({'|'.join(map(re.escape, letters))})(?:[)\].:]|$)", line) and "\n" not in line:
        return line, "letter"
    if match := _YES_NO.match(text):
        return match[1], "bare"
    if 0 < len(line) <= 40 and "\n" not in line and (len(line.split()) <= 3):
        return line, "bare"
    return None, "none"


def extract(response: str, letters: tuple[str, ...] = ()) -> tuple[str | None, str]:
    r"""The final answer of `response` and the rule that found it; (None, why) when there is none.

    `letters` are those of the choices, if any. The answer stands after the last </think>. When the last \boxed{} is
    unbalanced the response was cut and has no answer. While a <think> is open only a box at the very end counts.
    """
    text, thinking = final_text(response)
    if found := boxes(text):
        last = found[-1]
        if last.content is None:
            return None, "unbalanced"
        if thinking and text[last.end :].strip(" \t\n.$*)]\\"):
            return None, "thinking"
        return (last.content, "boxed") if 0 < len(last.content) <= MAX_ANSWER else (None, "empty")
    if thinking:
        return None, "thinking"
    if (tagged := _tagged(text)) is not None:
        tagged = _after_phrase(tagged) or tagged
        return (tagged, "tag") if 0 < len(tagged) <= MAX_ANSWER else (None, "empty")
    if (answer := _after_phrase(text)) is not None:
        return answer, "phrase"
    return _lone(text, letters)

"""The five benchmarks of the paper as their authors publish them (one parquet row each), and as VLMEvalKit reads them.

Sources: the data cards of MathLLMs/MathVision, AI4Math/MathVista, CaraJ/MathVerse-lmmseval, MMMU/MMMU and Lin-Chen/MMStar,
which ``JierunChen/*_with_difficulty_level`` extend by two columns; VLMEvalKit's dataset classes for what they look at.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
LETTERS = string.ascii_uppercase[:10]


@dataclass(frozen=True)
class Layout:
    """One benchmark. split: the one that the paper evaluates. id, text, images: parquet columns of the question's name, of
    what is asked, and of its pictures in order (an empty one is left out). needs, may: other columns, without which it can't do
    or can. columns: those of the table that ``cells`` gives for a row and its text, beside ``question`` where the text as
    published is not what is to be asked."""

    split: str
    id: str
    text: str
    images: tuple[str, ...]
    needs: tuple[str, ...]
    may: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Callable[[Row, str], Mapping[str, str]]


def plain(value: Any) -> str:
    """A cell as text with Unix line ends; nothing is ''."""
    return "" if value is None else str(value).replace("\r\n", "\n").replace("\r", "\n")


def has_picture(value: Any) -> bool:
    """Whether an image cell is filled; an empty one may be null, or have null for both bytes and path."""
    return bool(any(value.values()) if isinstance(value, Mapping) else value)


def listed(value: Any) -> list[str]:
    """A list, or a Python list literal as text. Raises ValueError for any other text, and for bytes."""
    if isinstance(value, bytes):
        raise ValueError(f"{value[:40]!r} is no list")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip() or "[]")
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{value[:80]!r} is no list") from error
        if not isinstance(value, list):
            raise ValueError(f"{str(value)[:80]!r} is no list")
    return [plain(item) for item in value or ()]


def choices_within(text: str, heading: str) -> tuple[str, list[str]]:
    """The text before the last ``heading``, and the choices A, B, ... behind it; the whole text and none if there are none.

    MathVerse writes them on lines (``A:5``), MMStar on one (``A: red, B: blue``).
    """
    stem, found, rest = text.rpartition(heading)
    marks: list[re.Match[str]] = []
    for mark in re.finditer(r"(?:^|(?<=[\s,;.]))\(?([A-J])\)?\s*[:.)]\s*", rest):
        if len(marks) < len(LETTERS) and mark[1] == LETTERS[len(marks)]:
            marks.append(mark)
    if not found or len(marks) < 2 or rest[: marks[0].start()].strip():
        return text, []
    ends = [mark.start() for mark in marks[1:]] + [len(rest)]
    parts = [rest[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return stem.strip(), [part.removesuffix(",").strip() for part in parts[:-1]] + parts[-1:]


def lettered(choices: Sequence[str]) -> dict[str, str]:
    """Columns A, B, ... Raises ValueError for more choices than letters."""
    if len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} choices, more than {len(LETTERS)}")
    return dict(zip(LETTERS, choices, strict=False))


def _mathvision(row: Row, text: str) -> Mapping[str, str]:
    choices = listed(row["options"])
    # The published table has no text with the choices in it. Where they are but letters, the picture shows them.
    shown = "" if choices == list(LETTERS[: len(choices)]) else "\nChoices:"
    shown += "".join(f"\n({letter}) {choice}" for letter, choice in lettered(choices).items()) if shown else ""
    return {"question": text + shown, "choices": repr(choices), "category": plain(row.get("subject"))}


def _mathvista(row: Row, text: str) -> Mapping[str, str]:
    choices, answer, told = listed(row["choices"]), plain(row["answer"]), row.get("metadata") or {}
    return {
        "choices": repr(choices),
        "answer_option": next((letter for letter, choice in lettered(choices).items() if choice == answer), ""),
        **{name: plain(row.get(name)) for name in ("question_type", "answer_type", "precision", "unit")},
        "task": plain(told.get("task")),
        "skills": repr(listed(told.get("skills"))),
    }


def _mathverse(row: Row, text: str) -> Mapping[str, str]:
    whole = plain(row.get("question_for_eval") or row["question"])
    return {
        "choices": repr(choices_within(whole, "Choices:")[1]),
        "question_for_eval": whole,
        **{name: plain(row.get(name)) for name in ("problem_index", "problem_version", "question_type", "metadata")},
    }


def _mmmu(row: Row, text: str) -> Mapping[str, str]:
    choices = lettered(listed(row["options"]))
    there = [n for n in range(1, 8) if has_picture(row.get(f"image_{n}"))]
    if there != list(range(1, len(there) + 1)):
        raise ValueError(f"it has the images {there}: VLMEvalKit counts them from 1 without a gap")
    for mark in re.finditer(r"<image (.{0,2})", "\n".join([text, *choices.values()])):
        if not re.fullmatch("[1-7]>", mark[1]) or int(mark[1][0]) > len(there):
            raise ValueError(f"the mark {mark[0]!r} stands for none of its {len(there)} images")
    return {**choices, "category": plain(row.get("subfield")), "split": "validation"}


def _mmstar(row: Row, text: str) -> Mapping[str, str]:
    stem, choices = choices_within(text, "Options:")
    return {
        "question": stem,
        **lettered(choices),
        "category": plain(row.get("category")),
        "l2-category": plain(row.get("l2_category")),
    }


LAYOUTS = {
    "mathvision": Layout(
        split="test",
        id="id",
        text="question",
        images=("decoded_image",),
        needs=("options",),
        may=("subject",),
        columns=("choices", "category"),
        cells=_mathvision,
    ),
    # Its text asks for reasoning before the answer, as the instruction does; VLMEvalKit's own table has the one that asks for
    # the answer directly (query_wo). Which the paper asked is unstated.
    "mathverse": Layout(
        split="testmini",
        id="sample_index",
        text="query_cot",
        images=("image",),
        needs=("question",),
        may=("question_for_eval", "problem_index", "problem_version", "question_type", "metadata"),
        columns=("choices", "question_for_eval", "problem_index", "problem_version", "question_type", "metadata"),
        cells=_mathverse,
    ),
    "mathvista": Layout(
        split="testmini",
        id="pid",
        text="query",
        images=("decoded_image",),
        needs=("choices", "answer_type", "precision"),
        may=("question_type", "unit", "metadata"),
        columns=("choices", "answer_option", "question_type", "answer_type", "precision", "unit", "task", "skills"),
        cells=_mathvista,
    ),
    "mmmu": Layout(
        split="validation",
        id="id",
        text="question",
        images=tuple(f"image_{n}" for n in range(1, 8)),
        needs=("options",),
        may=("subfield",),
        columns=(*LETTERS, "category", "split"),
        cells=_mmmu,
    ),
    "mmstar": Layout(
        split="val",
        id="index",
        text="question",
        images=("image",),
        needs=(),
        may=("category", "l2_category"),
        columns=(*LETTERS, "category", "l2-category"),
        cells=_mmstar,
    ),
}

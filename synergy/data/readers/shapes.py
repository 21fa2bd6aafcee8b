"""The layouts that rows come in, each read into the fields of a record.

Sources: s1 and s1.1 after the data cards of simplescaling/s1K and s1K-1.1; MMK12 after the card of FanqingM/MMK12; MM-Eureka
after the README of ModalMinds/MM-EUREKA ("Custom dataset"); ShareGPT after LLaMA-Factory's data/converter.py. Not verified: the
columns of JierunChen/Eureka-Distill, which are read as either ShareGPT or flat columns and told where they are neither; whether
MMK12's questions hold ``<image>`` marks; what MM-Eureka's system turn says (it is left out, ``data.instruction`` asks instead).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from reward_fns.extraction import boxes
from synergy.data import records
from synergy.data.layouts import LETTERS, listed
from synergy.data.problems import Problem
from synergy.data.records import Record
from synergy.errors import UserError

MARK = "<image>"
Row = Mapping[str, Any]
NAMES = tuple(f.name for f in fields(Record) if f.name not in ("images", "source"))


@dataclass
class Shaped:
    """fields: of the record; images: cells; problems: what the layout found. ready: the record itself, where it was one."""

    fields: dict[str, Any] = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ready: Record | None = None

    def record(self, source: str) -> Record | None:
        """The record without images, or None where ``problems`` say that there can be none."""
        if self.ready is not None or any(problem.check == "row" for problem in self.problems):
            return self.ready
        return Record(**{"id": "", **self.fields, "source": source})


Shape = Callable[[Row, Mapping[str, str], Shaped], None]


def read(shape: Shape, row: Row, columns: Mapping[str, str]) -> Shaped:
    """The row in the form of a record; what is wrong with it stands in ``problems``, nothing is raised."""
    out = Shaped()
    try:
        shape(row, columns, out)
        if out.ready is None:
            _tidy(out)
    except ColumnMissing as error:
        out.problems.append(Problem("row", str(error.args[0]), f"has no column {error.args[0]!r}, only {sorted(row)}"))
    except (ValueError, TypeError, AttributeError, UserError, RecursionError) as error:
        out.problems.append(Problem("row", "", f"can't be read ({error})"))
    return out


class ColumnMissing(Exception):
    """The column's name."""


def _cell(row: Row, name: str) -> Any:
    if name not in row:
        raise ColumnMissing(name)
    return row[name]


def _flat(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """Columns named like fields of the record, or as the map says; images in ``images`` or ``image``."""
    for name, column in columns.items():
        if name not in (*NAMES, "images"):
            raise UserError(f"columns.{name}: a record has {', '.join((*NAMES, 'images'))}")
        _cell(row, column)
    out.fields |= {name: row[columns.get(name, name)] for name in NAMES if columns.get(name, name) in row}
    for name in ("question", "answer"):
        if name not in out.fields:
            raise ColumnMissing(columns.get(name, name))
    out.images = _pictures(row, columns)


def _pictures(row: Row, columns: Mapping[str, str]) -> list[Any]:
    column = columns.get("images") or next((name for name in ("images", "image") if name in row), None)
    cells = row[column] if column else None
    if isinstance(cells, str) and cells.lstrip().startswith("["):
        cells = json.loads(cells)
    cells = cells if isinstance(cells, (list, tuple)) else [cells]
    return [cell for cell in cells if cell and (not isinstance(cell, Mapping) or any(cell.values()))]


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _turns(row: Row, column: str) -> list[tuple[str, str]]:
    turns = _cell(row, column)
    turns = json.loads(turns) if isinstance(turns, str) else turns
    found = []
    for turn in turns if isinstance(turns, (list, tuple)) else ():
        role, text = (str(turn.get(a) or turn.get(b) or "") for a, b in (("role", "from"), ("content", "value")))
        found.append((ROLES.get(role, role), text))
    return found


def _sharegpt(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """One question and one response in ``messages`` or ``conversations``; the answer in a column, else the response's box."""
    column = columns.get("messages") or next((n for n in ("messages", "conversations") if n in row), "messages")
    turns = [turn for turn in _turns(row, column) if turn[0] != "system"]
    roles = [role for role, _ in turns]
    if roles[:1] != ["user"] or roles[1:] not in ([], ["assistant"]):
        what = (
            f"has the turns {roles[:6]}; a record is one question of the user and at most one response of the assistant"
        )
        out.problems.append(Problem("roles", column, what))
    question = next((text for role, text in turns if role == "user"), "")
    trace = next((text for role, text in turns if role == "assistant"), None)
    more = {name: name for name in NAMES if name in row} | {n: c for n, c in columns.items() if n != "messages"}
    out.fields |= {name: _cell(row, column) for name, column in more.items() if name != "images"}
    out.fields["question"] = question
    out.fields.setdefault("trace", trace)
    out.fields.setdefault("answer", boxed(trace))
    out.images = _pictures(row, columns)


def boxed(text: str | None) -> str:
    r"""What the last ``\boxed`` of a text holds, or ''."""
    found = boxes(text or "")
    return (found[-1].content or "") if found else ""


def _thought(thinking: Any, attempt: Any) -> str | None:
    """A trace as the project writes it. The cards have had either column as text and as a list of one."""
    texts = [
        (value[0] if value else "") if isinstance(value, (list, tuple)) else value for value in (thinking, attempt)
    ]
    thinking, attempt = (str(text or "").strip() for text in texts)
    return f"<think>\n{thinking}\n</think>\n{attempt}" if thinking else None


def _s1(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """Columns question, solution, thinking_trajectories, attempt. ``solution`` is an answer or a whole worked solution."""
    _s1_like(row, columns, out, "thinking_trajectories", "attempt")


def _s1_1(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """The questions of s1 with DeepSeek-R1's columns; ``deepseek_grade`` and those of Gemini are left alone."""
    _s1_like(row, columns, out, "deepseek_thinking_trajectory", "deepseek_attempt")


def _s1_like(row: Row, columns: Mapping[str, str], out: Shaped, thinking: str, attempt: str) -> None:
    given = {name: _cell(row, column) for name, column in columns.items()}
    solution = str(_cell(row, "solution") or "")
    trace = _thought(_cell(row, thinking), _cell(row, attempt))
    kind = str(row.get("source_type") or "")
    own = {"question": _cell(row, "question"), "answer": boxed(solution) or solution, "trace": trace, "kind": kind}
    out.fields |= {**own, **given}


def _mm_eureka(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """id, conversations (system and user), answer, image_urls. A ``blank.png`` stands for no image: InternVL wants one."""
    turns = [text for role, text in _turns(row, "conversations") if role == "user"]
    if len(turns) != 1:
        out.problems.append(Problem("roles", "conversations", f"has {len(turns)} turns of the user, not one"))
    out.fields |= {"question": turns[0] if turns else "", "answer": _cell(row, "answer"), "id": row.get("id")}
    out.fields |= {name: _cell(row, column) for name, column in columns.items()}
    urls = row.get("image_urls") or []
    urls = [urls] if isinstance(urls, str) else urls
    out.images = [url for url in urls if str(url).rsplit("/", 1)[-1] != "blank.png"]


def _mmk12(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """Parquet with id, question, answer, subject, image."""
    _flat(row, {"kind": "subject", **columns} if "subject" in row else columns, out)


def _eureka_distill(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """As ShareGPT where there are turns, else by columns (not verified, see above)."""
    has_turns = "messages" in columns or any(name in row for name in ("messages", "conversations"))
    (_sharegpt if has_turns else _flat)(row, columns, out)


def _vlmevalkit(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """A table of VLMEvalKit: images in base64, choices in columns A, B, …"""
    if row.get("record"):
        return _written(row, columns, out)
    out.fields |= {"question": _cell(row, "question"), "answer": _cell(row, "answer")}
    out.fields |= {"id": row.get("id") or row.get("index"), "level": row.get("difficulty_level") or None}
    out.fields["choices"] = {letter: row[letter] for letter in LETTERS if row.get(letter)} or None
    out.fields |= {name: _cell(row, column) for name, column in columns.items()}
    out.images = _base64(row.get("image"))
    return None


def _base64(cell: Any) -> list[Any]:
    texts = json.loads(cell) if isinstance(cell, str) and cell.startswith("[") else [cell]
    return [{"base64": text} for text in texts if text]


def _written(row: Row, columns: Mapping[str, str], out: Shaped) -> None:
    """What ``synergy.data.writers`` wrote: the record's own JSON in ``record``, beside a framework's columns."""
    told = json.loads(str(_cell(row, "record")))
    names = told.get("images") or []
    out.ready = records.parse({**told, "images": []}, "record")
    cells = _base64(row["image"]) if "image" in row else list(row.get("images") or [])
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} images, where its record has {len(names)}")
    out.images = cells


SHAPES: dict[str, Shape] = {
    "columns": _flat,
    "sharegpt": _sharegpt,
    "s1": _s1,
    "s1.1": _s1_1,
    "mm_eureka": _mm_eureka,
    "mmk12": _mmk12,
    "eureka_distill": _eureka_distill,
    "vlmevalkit": _vlmevalkit,
    "written": _written,
}


def _tidy(out: Shaped) -> None:
    """Fields in the types of a record; what can't be made one is a problem."""
    told = out.fields
    question = told.get("question")
    if not isinstance(question, str) or not question.strip():
        out.problems.append(Problem("row", "question", f"its question is {question!r:.60}, not text"))
    else:
        told["question"] = _unmarked(question, out)
    answer = told.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(int(answer)) if float(answer).is_integer() else str(answer)
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str):
        out.problems.append(
            Problem("answer", "answer", f"its answer is {str(answer)[:60]!r}, not one final answer as text")
        )
    told["answer"] = answer if isinstance(answer, str) else ""
    told["id"] = "" if told.get("id") is None else str(told["id"])
    told["choices"] = _choices(told.get("choices"))
    for name in ("level", "passes", "steps"):
        told[name] = _number(name, told.get(name))
    told["steps"] = told["steps"] or 0
    told["kind"] = str(told.get("kind") or "")
    for name in ("trace", "short", "answer_type"):
        text = told.get(name)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name} is {type(text).__name__}, not text")
        told[name] = text or None
    if not out.problems:
        records.parse(told, "the row")


def _unmarked(question: str, out: Shaped) -> str:
    """The question without the ``<image>`` marks before and after it: images always come first here."""
    text = re.sub(rf"^(\s*{MARK})+\s*|(\s*{MARK})+\s*$", "", question)
    taken = question.count(MARK) - text.count(MARK)
    if taken and question.count(MARK) != len(out.images):
        what = f"has {question.count(MARK)} <image> marks for {len(out.images)} images"
        out.problems.append(Problem("marks", "question", what, {"question": text.replace(MARK, " ").strip()}))
        return text.replace(MARK, " ").strip() or question
    return text or question


def _choices(value: Any) -> dict[str, str] | None:
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("{") else listed(value)
    if isinstance(value, Mapping):
        return {str(letter): str(text) for letter, text in value.items() if text is not None} or None
    texts: Sequence[Any] = value or ()
    if len(texts) > len(LETTERS):
        raise ValueError(f"{len(texts)} choices, more than {len(LETTERS)}")
    return {letter: str(text) for letter, text in zip(LETTERS, texts, strict=False)} or None


def _number(name: str, value: Any) -> int | None:
    """A count from 3, 3.0, '3' or 'L3'."""
    if value is None or value == "":
        return None
    match = re.fullmatch(r"(?:L|Level\s*)?(\d{1,4})(?:\.0+)?", str(value).strip(), re.IGNORECASE)
    if match is None or isinstance(value, bool):
        raise ValueError(f"{name} is {str(value)[:40]!r}, not a count")
    return int(match[1])

"""Rows that may become training data, from records and from the responses that a model gave to their questions.

What a model wrote is not trusted: text that a chat template or a framework's reader would take for something else than text is
unusable, whatever its answer. A row holds no text but says where it lies, since all responses of a large set are gigabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from synergy.data.records import LEVEL_RUNS, Record
from synergy.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RECORDS, RESPONSES, TRACES = "records", "responses", "traces"
MEDIA = re.compile(r"<(?:image|video|audio)>", re.IGNORECASE)
"""LLaMA-Factory and verl put media in their place."""
TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
"""Control tokens of chat templates, also of other models than ours."""
ROLE = re.compile(
    r"^[ \t]*(?:(?:user|assistant|system|human|gpt)[ \t]*$|(?:User|Assistant|Human):|### ?(?:Instruction|Response):)",
    re.M,
)
"""A turn that the model goes on to write for someone else."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Row:
    """A question with a response of a model, with the trace that came with it, or as it is (``origin``).

    source: of the record. passes of ``runs``: right responses, None where no one counted. correct, tokens: of the response.
    index: which of a question's responses. at: byte offset of its line in the file of responses.
    """

    id: str
    origin: str = RECORDS
    source: str = ""
    level: int | None = None
    passes: int | None = None
    runs: int = LEVEL_RUNS
    correct: bool = False
    tokens: int = 0
    index: int = 0
    at: int = 0


def known(row: Row, value: int | None) -> int:
    """A count of a row's. Raises UserError where no one counted."""
    if value is None:
        raise UserError(f"record {row.id!r} has neither pass count nor level; synergy tag finds those of data.train")
    return value


def misread(text: str, special: Collection[str] = ()) -> str | None:
    """What in a text a framework's reader or a chat template would take for something else than text; None if nothing.
    special: the tokenizer's own special tokens."""
    if found := MEDIA.search(text):
        return f"media placeholder {found[0]}"
    token = TOKEN.search(text)
    if name := token[0] if token else next((name for name in special if name in text), None):
        return f"special token {name}"
    return None


def unusable(text: str, special: Collection[str] = ()) -> str | None:
    """Why a response should not be trained on; None if it can be: ``misread``, or no clean text of one turn."""
    if not text.strip():
        return "empty"
    if "\ufffd" in text:
        return "broken characters"
    if found := CONTROL.search(text):
        return f"control character {found[0]!r}"
    if why := misread(text, special):
        return why
    if found := ROLE.search(text):
        return f"role marker {found[0].strip()!r}"
    return None


def special_tokens(words: Tokenizer) -> list[str]:
    """Those that a chat template is made of."""
    return [token.content for token in words.get_added_tokens_decoder().values() if token.special]


def of_records(found: Iterable[Record]) -> list[Row]:
    """Each record as it is, with the passes of 16 runs that it was tagged with."""
    return [Row(r.id, source=r.source or "", level=r.level, passes=r.passes) for r in found]


def of_responses(
    found: Sequence[Record],
    file: Path,
    problem: Callable[[Record, str, str | None], str | None],
    traces: bool = True,
) -> tuple[list[Row], list[tuple[Row, str]]]:
    """(rows, refused rows with the reason) from responses.jsonl of a sample stage, question by question in the order of the
    records: the responses in their order, then the trace if ``traces``. Questions that were not asked have no rows.

    problem: (record, text, finish reason or None) -> why a right response or a trace is unusable.
    """
    by_id = {record.id: record for record in found}
    heads: dict[str, list[tuple[bool, int, int, int, str | None]]] = {}
    with file.open("rb") as stream:
        at = 0
        for line in stream:
            told = json.loads(line)
            name, right = str(told["id"]), told["acc"] > 0.5
            if name not in by_id:
                raise UserError(f"{file}: question {name!r} is not among the records")
            why = problem(by_id[name], told["response"], told["finish_reason"]) if right else None
            heads.setdefault(name, []).append((right, told["tokens"], told["index"], at, why))
            at += len(line)
    rows: list[Row] = []
    refused: list[tuple[Row, str]] = []
    for record in found:
        if record.id not in heads:
            continue
        told = heads.pop(record.id)
        passes = sum(right for right, *_ in told)
        source = record.source or ""
        for right, tokens, index, at, why in told:
            row = Row(record.id, RESPONSES, source, record.level, passes, len(told), right, tokens, index, at)
            refused.append((row, why)) if why else rows.append(row)
        if traces and record.trace:
            row = Row(record.id, TRACES, source, record.level, passes, len(told))
            why = problem(record, record.trace, None)
            refused.append((row, why)) if why else rows.append(row)
    return rows, refused


def text(row: Row, record: Record, responses: IO[bytes]) -> str:
    """The text of a row: of its response, read from the open file, or of its record's trace."""
    if row.origin == RESPONSES:
        responses.seek(row.at)
        return str(json.loads(responses.readline())["response"])
    return record.trace or ""

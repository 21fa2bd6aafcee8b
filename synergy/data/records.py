"""The record: a question as everything here knows it, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from synergy.data import untrusted
from synergy.errors import UserError

THRESHOLDS = (12, 8, 5, 2)
"""Passes of 16 runs from which a question counts as level 1, 2, 3, 4; fewer: level 5 (paper, difficulty levels)."""
LEVEL_RUNS = 16


@dataclass(frozen=True)
class Record:
    """images: paths relative to the file that holds the record. trace: the whole long response, ``<think>`` to ``\\boxed``.

    answer_type: one of ``reward_fns.gold.TYPES``, or none: then any answer that can be judged will do.

    passes: correct responses of the base model out of 16. level: 1 (easy) to 5 (hard), from the passes. source: the name of the
    data set that it comes from, if several were put together (``synergy data prepare``).
    """

    id: str
    question: str
    answer: str
    images: tuple[str, ...] = ()
    choices: Mapping[str, str] | None = None
    answer_type: str | None = None
    trace: str | None = None
    short: str | None = None
    kind: str = ""
    steps: int = 0
    level: int | None = None
    passes: int | None = None
    source: str = ""


NAMES = frozenset(f.name for f in fields(Record))


def row(record: Record) -> dict[str, Any]:
    """The record as JSON holds it: ``dataclasses.asdict`` without copying every text of it."""
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_choices(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_text, value.values()))


_OPTIONAL: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "choices": (_is_choices, "a map of letters to texts"),
    **dict.fromkeys(("answer_type", "trace", "short", "kind", "source"), (_is_text, "text")),
    "level": (_whole(1, 5), "a level of 1 to 5"),
    "passes": (_whole(0, LEVEL_RUNS), f"a count of 0 to {LEVEL_RUNS} right runs"),
}


def level(passes: int, runs: int = LEVEL_RUNS) -> int:
    """Difficulty level of a question that was solved ``passes`` times. Raises ValueError unless 0 <= passes <= runs == 16."""
    if runs != LEVEL_RUNS or not 0 <= passes <= runs:
        raise ValueError(f"levels are defined on 0 to 16 passes of 16 runs, not {passes} of {runs}")
    return next((index for index, least in enumerate(THRESHOLDS, start=1) if passes >= least), 5)


def by_level(found: Iterable[Record]) -> dict[str, int]:
    """Questions per level, 1 to 5."""
    levels = [record.level for record in found]
    return {f"level_{n}": levels.count(n) for n in range(1, 6)}


def parse(row: Any, where: str) -> Record:
    """A record from a decoded JSON line. Raises UserError that names the place and the field."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a record is a JSON object, this is {type(row).__name__}")
    missing = {"id", "question", "answer"} - set(row)
    if missing:
        raise UserError(f"{where}: the record lacks {sorted(missing)}; it has {sorted(row)}")
    known = {name: value for name, value in row.items() if name in NAMES}
    for name, (good, wanted) in _OPTIONAL.items():
        if known.get(name) is not None and not good(known[name]):
            raise UserError(f"{where}: {name!r} is {wanted}, not {json.dumps(known[name], default=str)[:80]}")
    images = known.get("images") or []
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise UserError(f"{where}: 'images' is a list of paths relative to the file")
    if not isinstance(known["answer"], (str, int, float)) or isinstance(known["answer"], bool):
        raise UserError(f"{where}: 'answer' is one final answer as text, not {json.dumps(known['answer'])[:80]}")
    untrusted.check(known, where)
    text = {name: str(known[name]) for name in ("id", "question", "answer")}
    given = {name: value for name, value in known.items() if value is not None}
    return Record(**{**given, **text, "images": tuple(images)})


def stream(path: Path) -> Iterator[Record]:
    """The records of a JSONL file one by one, as ``parse`` checks them."""
    return (parse(row, where) for where, row in lines(path))


def read(path: Path) -> list[Record]:
    """All records of a JSONL file. Raises UserError for a missing or unreadable file, a bad line, or an id used twice."""
    found: list[Record] = []
    seen: set[str] = set()
    for where, row in lines(path):
        record = parse(row, where)
        if record.id in seen:
            raise UserError(f"{where}: id {record.id!r} is used twice; ids are what pass counts hang on")
        seen.add(record.id)
        found.append(record)
    if not found:
        raise UserError(f"{path}: holds no records")
    return found


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, decoded value) of a JSONL file."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                if text.strip():
                    yield f"{path}:{number}", json.loads(text)
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); check data.source and the file names below data"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON lines in UTF-8 ({error})") from error


def write(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(row(record), ensure_ascii=False) + "\n")

"""State shared by the model and dataset objects that VLMEvalKit builds: answers on disk, live progress, first failure.

VLMEvalKit constructs those objects itself from a JSON config, so what they share lives here, one per process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.spec import Endpoint, Question, Spec

_PROGRESS_SECONDS = 0.3


class AskError(RuntimeError):
    """The evaluation cannot go on: a request failed for good, or something before it did."""


class Session:
    """Thread-safe. `answers.jsonl` is the cache: VLMEvalKit's own checkpoint is rewritten whole after every answer, not
    atomically, and keeps neither token counts nor the reason for which a response ended."""

    def __init__(self, spec: Spec, questions: Mapping[str, Sequence[Question]]) -> None:
        self.spec = spec
        self.questions = questions
        self.total = spec.runs * sum(len(rows) for rows in questions.values())
        self.failure: str | None = None
        self.phase = "import"
        self._begin = time.monotonic()
        self._phases: dict[str, float] = {}
        self.lock = threading.Lock()
        listed = [(name, question.index) for name, rows in questions.items() for question in rows]
        self._places = {place: number for number, place in enumerate(listed)}
        self._written = 0.0
        self._used: set[str] = set()
        spec.out.mkdir(parents=True, exist_ok=True)
        spec.work_dir.mkdir(parents=True, exist_ok=True)
        path = spec.work_dir / "answers.jsonl"
        self._answers = read_answers(path)
        self._file = path.open("a", encoding="utf-8")
        self._report(force=True)

    def answered(self, key: str) -> dict[str, Any] | None:
        """The answer of an earlier attempt to exactly this request, or None. Counts as progress."""
        with self.lock:
            row = self._answers.get(key)
            if row is not None:
                self._used.add(key)
                self._report()
            return row

    def server(self, benchmark: str, index: str) -> int:
        """The endpoint that answers all runs of a question, always the same: they share its prefix cache."""
        return self._places[benchmark, index] % len(self.spec.endpoints)

    def endpoint(self, benchmark: str, index: str) -> Endpoint:
        return self.spec.endpoints[self.server(benchmark, index)]

    def record(self, key: str, row: dict[str, Any]) -> None:
        """Append an answer; it survives a kill of this process from here on."""
        line = json.dumps({"key": key, **row}, ensure_ascii=False)
        with self.lock:
            self._file.write(line + "\n")
            self._file.flush()
            self._answers[key] = {"key": key, **row}
            self._used.add(key)
            self._report()

    def response(self, key: str) -> str:
        """The text behind a prediction. Raises KeyError for one that this evaluation did not make."""
        with self.lock:
            if key not in self._used:
                raise KeyError(f"prediction {key[:80]!r} is not of this evaluation")
            return str(self._answers[key]["response"])

    def rows(self) -> list[dict[str, Any]]:
        """The answers that belong to this evaluation: asked now or taken from the cache now."""
        with self.lock:
            return [self._answers[key] for key in self._used]

    def fail(self, reason: str) -> None:
        """Keep the first reason; every request that has not started yet then refuses to."""
        with self.lock:
            self.failure = self.failure or reason

    def check(self) -> None:
        if self.failure is not None:
            raise AskError(self.failure)

    def enter(self, phase: str) -> None:
        """Name what happens now (import, wait, ask, score, judge, done or failed) and keep how long the last phase took."""
        with self.lock:
            now = time.monotonic()
            self._phases[self.phase] = round(now - self._begin, 3)
            self.phase, self._begin = phase, now
            self._report(force=True)

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._written < _PROGRESS_SECONDS:
            return
        self._written = now
        state = {"done": len(self._used), "total": self.total, "phase": self.phase, "phase_seconds": self._phases}
        write_atomic(self.spec.out / "progress.json", json.dumps(state))


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """The cache by request key. A torn last line (killed while writing) is cut off, so that appending stays safe."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        os.truncate(path, len(whole))
    rows = (json.loads(line) for line in whole.splitlines())
    return {row["key"]: row for row in rows}


def write_atomic(path: Path, text: str, sync: bool = False) -> None:
    """Readers see the old file or the new one, never a half."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)


_current: Session | None = None


def start(session: Session) -> None:
    """Make `session` the one that this process works for."""
    global _current
    _current = session


def current() -> Session:
    """The session of this process. Raises RuntimeError before `start`."""
    if _current is None:
        raise RuntimeError("the adapter's classes work only under eval/run.py")
    return _current

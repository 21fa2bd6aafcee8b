"""When a stage's process was spawned, had imported its libraries, and began and ended its steps: read off while it runs."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from synergy.driver import ledger

READY = "***** Running training *****"
"""LLaMA-Factory's line before the first step; when verl's first step begins, its own figures tell."""
IMPORTED = {"sft": "Process rank:", "rl": "ray init kwargs"}
"""The line by which a framework tells that its libraries are imported."""
STEPS = {"sft": "trainer_log.jsonl", "rl": "verl_metrics.jsonl"}
POLL_SECONDS = 0.02
FOLLOWED = "moments.json"
"""Beside a run directory: the marks of its stages, by folder (gpu/chain.py)."""
Marks = dict[str, float]


class Watch(threading.Thread):
    """Notes when lines appear in the logs and figures of a run directory, or of by_hand.py's folder, until it is closed."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.seen, self.over = root, dict[Path, list[tuple[float, str]]](), threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        offsets = {file: file.stat().st_size for file in self._files()}  # when those lines came is not known
        while not self.over.wait(POLL_SECONDS):
            for file in self._files():
                at = offsets.get(file, 0)
                with suppress(FileNotFoundError), file.open("rb") as stream:  # its stage may just be published
                    stream.seek(at)
                    whole = stream.read().rpartition(b"\n")[0]
                    offsets[file] = at + len(whole) + 1 if whole else at
                    lines = whole.decode(errors="replace").splitlines()
                    self.seen.setdefault(file, []).extend((time.time(), line) for line in lines)

    def _files(self) -> list[Path]:
        patterns = ("log.txt", "attempt-*/log.txt", f"attempt-*/{STEPS['rl']}", f"work/out/{STEPS['sft']}")
        return [file for name in patterns for start in ("", "stages/*/") for file in self.root.glob(start + name)]

    def of(self, entry: ledger.Entry) -> Marks:
        """Those of a finished stage of the run directory that is watched."""
        return self.marks(entry.kind, attempt(self.root, entry))

    def marks(self, kind: str, attempt: Path, log: Path | None = None) -> Marks:
        """Of a stage's attempt, as far as they are seen: spawn, imported, first (its first step begins), second (the next one
        does) and last (its last step so far is done), in seconds since the epoch, and how many steps. attempt: its folder; log:
        where that is not the log's."""
        found = {"spawn": (attempt / "command.sh").stat().st_mtime}
        lines = list(self.seen.get(log or attempt / "log.txt", ()))
        steps = [
            (moment, line)
            for file in (attempt.parent / "work/out" / STEPS[kind], attempt / STEPS[kind])
            for moment, line in list(self.seen.get(file, ()))
            if "loss" in line
        ]
        texts = {"imported": IMPORTED[kind]} | ({"first": READY} if kind == "sft" else {})
        for name, text in texts.items():
            if (moment := next((moment for moment, line in lines if text in line), None)) is not None:
                found[name] = moment
        if kind == "rl" and steps:
            found["first"] = steps[0][0] - float(json.loads(steps[0][1])["data"]["timing_s/step"])
        return found | ({"second": steps[0][0], "last": steps[-1][0], "steps": len(steps)} if steps else {})


def attempt(root: Path, entry: ledger.Entry) -> Path:
    """The folder of the attempt that finished the stage."""
    return (root / entry.output).parent / f"attempt-{entry.attempt}"


def start(marks: Marks) -> dict[str, float]:
    """Seconds of a stage's process before its first step, by part."""
    return {
        "imports": round(marks["imported"] - marks["spawn"], 1),
        "cluster, engines, model": round(marks["first"] - marks["imported"], 1),
        "start": round(marks["first"] - marks["spawn"], 1),
    }


def rate(marks: Marks) -> float:
    """Steps a second without the first."""
    return (marks["steps"] - 1) / (marks["last"] - marks["second"])

"""What a driver is doing now, for others to read: ``state.json`` in the run directory, replaced as a whole at each change.

The ledger says what is finished; this file says what runs, or how the last driver ended. It decides nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from synergy import machine
from synergy.driver.execute import Watcher
from synergy.driver.plan import Plan, Step
from synergy.stages import Progress

FILE = "state.json"
SCHEMA = 1
WRITE_SECONDS = 2.0
"""At most so often while only the progress changes; ``beat`` is as fresh as that."""
SILENT_SECONDS = 60.0
"""A driver on another host whose last beat is older may be gone."""


@dataclass(frozen=True)
class StageState:
    """state: waiting, running, reused, done or failed. folder: below the run directory. done, total: in ``unit``; seconds: it
    took, or started: since when (Unix time)."""

    name: str
    kind: str
    note: str
    folder: str
    state: str = "waiting"
    why: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    figure: str = ""
    started: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """A driver: pid, its birth (``machine.born``) and host, so that another process of the same number is not taken for it;
    beat: when it last wrote. ended: empty while it runs, else ``finished`` or why it stopped."""

    recipe: str
    command: str
    pid: int
    born: str
    host: str
    started: float
    beat: float
    ended: str = ""
    stages: tuple[StageState, ...] = field(default_factory=tuple)
    schema: int = SCHEMA

    @property
    def alive(self) -> bool | None:
        """Whether the driver still runs; None where this machine can't tell, since it ran on another."""
        if self.ended:
            return False
        if self.host != os.uname().nodename:
            return None if time.time() - self.beat > SILENT_SECONDS else True
        return machine.born(self.pid) == self.born


def read(root: Path) -> State | None:
    """The last driver's state, or None without one that this version can read."""
    try:
        raw = json.loads((root / FILE).read_text(encoding="utf-8"))
        if raw.get("schema") != SCHEMA:
            return None
        return State(**{**raw, "stages": tuple(StageState(**stage) for stage in raw["stages"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@contextmanager
def recording(todo: Plan, watch: Watcher) -> Iterator[Watcher]:
    """The watcher, and beside it the state file of its plan, from the first stage on: a driver that is refused before that
    leaves the file to the one that works there. An error from within is written down before it goes on."""
    recorder = _Recorder(todo, watch)
    try:
        yield Watcher(recorder.start, recorder.tick, recorder.done, watch.note)
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        recorder.end(reason)
        raise
    recorder.end("finished")


class _Recorder:
    def __init__(self, todo: Plan, watch: Watcher) -> None:
        self.watch = watch
        me = os.getpid()
        self.root, self.written, self.current, self.begun = todo.space.root, float("-inf"), set[str](), False
        self.stages = {step.stage.name: _waiting(step, self.root) for step in todo.steps}
        command = shlex.join(["synergy", "run", *sys.argv[1:]])
        now, host = time.time(), os.uname().nodename
        self.state = State(todo.recipe, command, me, machine.born(me) or "", host, now, now)

    def start(self, step: Step) -> None:
        self.begun = True
        if step.action != "reuse":
            self.current.add(step.stage.name)
            self.change(step, state="running", started=time.time())
        self.watch.start(step)

    def tick(self, step: Step, now: Progress | None) -> None:
        told = asdict(now) if now is not None else {}
        self.change(step, force=False, **told)
        self.watch.tick(step, now)

    def done(self, step: Step, word: str, seconds: float) -> None:
        self.current.discard(step.stage.name)
        self.change(step, state="reused" if word == "reused" else "done", seconds=seconds)
        self.watch.done(step, word, seconds)

    def change(self, step: Step, force: bool = True, **told: Any) -> None:
        name = step.stage.name
        self.stages[name] = replace(self.stages[name], **told)
        if force or time.monotonic() - self.written >= WRITE_SECONDS:
            self.write()

    def end(self, reason: str) -> None:
        for name in self.current if reason != "finished" else ():
            stage = self.stages[name]
            self.stages[name] = replace(stage, state="failed", seconds=time.time() - stage.started)
        self.state = replace(self.state, ended=reason)
        if self.begun:
            self.write()

    def write(self) -> None:
        """A full disk must not end a run because of a file that only tells about it."""
        self.written = time.monotonic()
        told = asdict(replace(self.state, beat=time.time(), stages=tuple(self.stages.values())))
        with suppress(OSError):
            machine.replace_text(self.root / FILE, json.dumps(told, indent=1) + "\n")


def _waiting(step: Step, root: Path) -> StageState:
    stage = step.stage
    return StageState(stage.name, stage.kind, stage.note, str(step.folder.relative_to(root)), why=step.why)

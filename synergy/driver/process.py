"""Runs one native command as a child in its own session, watches it, and leaves nothing behind.

Every process of a stage carries the mark ``SYNERGY_STAGE`` in its environment, the stage's own folder: Ray and vLLM start
daemons outside the child's process group. What a killed driver left is the business of ``orphans``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from synergy import machine
from synergy.errors import UserError
from synergy.stages import Command

MARK = "SYNERGY_STAGE"
GRACE_SECONDS = 15.0
POLL_SECONDS = 0.1
TICK_SECONDS = 1.0
MEMORY_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """code: exit status (negative: killed by that signal). stopped: why we killed it, or None. peak_memory: bytes, all
    processes."""

    code: int
    stopped: str | None
    seconds: float
    peak_memory: int

    @property
    def failed(self) -> str | None:
        """How it ended badly, in words."""
        if self.stopped or self.code == 0:
            return self.stopped
        return f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"


def environment(command: Command, mark: str) -> dict[str, str]:
    """The driver's environment plus the command's. Bytecode is cached: a stage starts up to nine Python processes."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**env, "PYTHONUNBUFFERED": "1", **command.env, MARK: mark}


def marked(*marks: str) -> Iterator[psutil.Process]:
    """All live processes of a stage, wherever they moved in the process tree."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) in marks and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def family(*marks: str) -> list[psutil.Process]:
    """The processes that bear one of the marks, and their descendants, which may have written a title over theirs."""
    return _with_descendants(marked(*marks))


def _with_descendants(found: Iterable[psutil.Process]) -> list[psutil.Process]:
    whole, below = list(dict.fromkeys(found)), dict[int, list[psutil.Process]]()
    for process in psutil.process_iter(
        ["ppid"]
    ):  # one pass over all processes, where children() would make one for each
        below.setdefault(process.info["ppid"], []).append(process)
    for process in whole:  # grows meanwhile
        whole += [child for child in below.get(process.pid, []) if child not in whole]
    return whole


def reap(mark: str, grace: float = GRACE_SECONDS) -> int:
    """Ends what is left of a stage; returns how many processes there were."""
    return end(marked(mark), [mark], grace)


def end(found: Iterable[psutil.Process], marks: Sequence[str], grace: float) -> int:
    """Ends these processes, their descendants, and what else comes to bear the marks: SIGTERM, ``grace`` seconds, SIGKILL."""
    there = _with_descendants(found)
    for process in there:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    over = time.monotonic() + grace
    while any(map(runs, there)) and time.monotonic() < over:
        time.sleep(0.02)
    for process in {*filter(runs, there), *family(*marks)}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(there)


def runs(process: psutil.Process) -> bool:
    """Looked at without waiting for it, as psutil's wait_procs does, which takes a child's exit status from its Popen."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _memory(processes: Iterable[psutil.Process]) -> int:
    """Proportional set size of these processes, bytes: shared pages count once."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError), open(f"/proc/{process.pid}/smaps_rollup") as rollup:
            total += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    return total


def run(
    command: Command,
    mark: str,
    log: Path,
    tick: Callable[[], None],
    alive: Callable[[], object],
    stall_seconds: float,
    beside: str | None = None,
    limit_seconds: float | None = None,
    seen: Callable[[list[psutil.Process]], None] = lambda found: None,
) -> Outcome:
    """Runs the command to its end; its output goes to ``log``.

    tick: called about once a second, for progress. alive: any value that changes with every sign of life besides the log.
    beside: mark of processes that serve the stage, whose memory counts as the stage's. seen: told the processes that there are,
    the child at once and all every few seconds.
    A child silent for ``stall_seconds``, or still there after ``limit_seconds``, is killed; time is the monotonic clock's, so
    that setting the wall clock stops nothing. On KeyboardInterrupt, and on any other error, all its processes are ended before
    the exception goes on. Raises UserError when the program is not there.
    """
    started = moved = ticked = time.monotonic()
    peak, sampled = 0, -MEMORY_SECONDS
    last: object = None
    stopped: str | None = None
    marks = (mark,) if beside is None else (mark, beside)
    with log.open("ab") as sink:
        try:
            child = subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env=environment(command, mark),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=machine.die_with_parent,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(
                f"{command.argv[0]} can't be started ({error.strerror}): its environment is not whole. 'synergy doctor' says "
                "what is installed; make setup mends it, or frameworks.<name>=<Python> names another one"
            ) from error
    try:
        seen([psutil.Process(child.pid)])
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if now - ticked < TICK_SECONDS:
                continue
            ticked = now
            tick()
            if now - sampled >= MEMORY_SECONDS:
                found, sampled = family(*marks), now
                seen(found)
                peak = max(peak, _memory(found))
            stat = log.stat()
            if (sign := (stat.st_size, stat.st_mtime_ns, alive())) != last:
                moved, last = now, sign
            if now - moved > stall_seconds:
                stopped = f"said nothing for {stall_seconds / 60:.0f} minutes and was stopped"
                break
            if limit_seconds is not None and now - started > limit_seconds:
                stopped = f"took longer than {limit_seconds / 3600:.2g} hours (run.stage_hours) and was stopped"
                break
    finally:
        reap(mark, grace=2.0 if child.poll() is not None else GRACE_SECONDS)
        child.wait()
    tick()
    return Outcome(child.returncode, stopped, time.monotonic() - started, peak)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log that say something, for an error message, the last exception's own line first.

    Carriage returns of progress bars are resolved; what nanobind tells about leaks at exit is left out.
    """
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 256_000))
        text = stream.read().decode(errors="replace")
    rows = [row.rsplit("\r", 1)[-1].rstrip() for row in text.splitlines()]
    rows = [
        row for row in rows if row and not re.match(r"nanobind: | - (leaked |\.\.\. skipped)|See https://nanobind", row)
    ]
    last = rows[-lines:]
    cause = [row for row in rows if re.search(r"\b\w+(Error|Exception): \S", row)][-1:]
    return "\n".join(last if set(cause) <= set(last) else [*cause, "...", *last])


def shell_script(command: Command) -> str:
    """The command as a script that runs by hand, with every variable it needs."""
    rows = ["#!/usr/bin/env bash", "set -euo pipefail"]
    rows += [f"export {name}={shlex.quote(value)}" for name, value in sorted(command.env.items())]
    if command.cwd is not None:
        rows.append(f"cd {shlex.quote(str(command.cwd))}")
    words = [shlex.quote(word) for word in command.argv]
    rows.append("exec " + " \\\n  ".join(words))
    return "\n".join(rows) + "\n"

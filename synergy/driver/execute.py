"""Execution: runs the steps of a plan one after the other and publishes what they make.

Publish = collect aside, verify, fsync, rename, then one line in the ledger. Whatever is killed before that line was written
is not there, and the next run continues from the framework's own last checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from synergy import stages
from synergy.driver import card, disk, failure, forward, identity, ledger, manifest, process
from synergy.driver.keep import Keeper
from synergy.driver.ledger import Entry
from synergy.driver.plan import Plan, Step
from synergy.driver.warm import PATIENCE, Warm
from synergy.errors import StageFailed, UserError
from synergy.stages import Command, Job, Progress

USER_ERROR = 2
"""Exit code by which a program of ours says that its last line is a message for the user."""


BACK_OFF_SECONDS = 10.0
"""Before the first retry; twice as long before each further one."""


@dataclass(frozen=True)
class Limits:
    """How long a stage may be silent, and may take in all (None: as long as it does); how many more attempts a failure gets
    that may pass by itself; whether native checkpoints stay after a stage is published; whether a forward pass shows that a
    stage's loader reads its model as it is."""

    stall_seconds: float = 1800.0
    stage_seconds: float | None = None
    retries: int = 0
    keep_work: bool = False
    verify: bool = False


class Passing(StageFailed):
    """A failure of the machine's that may be gone at the next attempt."""


@dataclass(frozen=True)
class Watcher:
    """What the display wants to hear: a stage starts, moves on, and is done (with the word for how); note: what else people
    should know of it."""

    start: Callable[[Step], None]
    tick: Callable[[Step, Progress | None], None]
    done: Callable[[Step, str, float], None]
    note: Callable[[Step, str], None] = lambda step, text: None


def run(
    todo: Plan, limits: Limits, watch: Watcher, warm: Warm | None = None, keeper: Keeper | None = None
) -> list[Entry]:
    """Runs the plan; returns the ledger entries of all its stages, in order. One driver at a time per run directory.
    keeper: takes what no stage needs any more; None: everything stays.

    Raises UserError, or StageFailed; a full disk is one, and leaves what is published as it is.
    """
    space = todo.space
    lock = FileLock(space.root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        owner = (space.root / ".owner").read_text() if (space.root / ".owner").exists() else "unknown"
        raise UserError(
            f"another driver ({owner.strip()}) works in {space.root}; wait for it, stop it, or set another run.dir"
        ) from error
    try:
        (space.root / ".owner").write_text(f"pid {os.getpid()} on {os.uname().nodename}\n")
        entries: dict[str, Entry] = {}
        for step in todo.steps:
            watch.start(step)
            if step.action == "reuse" and step.entry is not None:
                entries[step.stage.name] = step.entry
                _tidy(step, limits.keep_work, keeper)
                watch.done(step, "reused", 0.0)
                continue
            forward.inputs(step, space, entries)
            inputs = {role: entries[name].digest for role, name in step.stage.inputs.items() if name in entries}
            entry = _run_step(step, todo, limits, watch, inputs, warm)
            entries[step.stage.name] = entry
            _tidy(step, limits.keep_work, keeper)
            warning = entry.figures.get("warning")
            watch.done(step, f"done; {warning}" if warning else "done", entry.seconds)
        return list(entries.values())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageFailed(f"{space.root} [machine]: {failure.DISK.advice}") from error
    finally:
        lock.release()


def _tidy(step: Step, keep_work: bool, keeper: Keeper | None) -> None:
    """Native checkpoints of a published stage go; a driver killed right after publishing leaves them to the next."""
    if not keep_work:
        shutil.rmtree(step.folder / "work", ignore_errors=True)
    if keeper is not None:
        keeper.done(step)


def _run_step(
    step: Step, todo: Plan, limits: Limits, watch: Watcher, inputs: dict[str, str], warm: Warm | None
) -> Entry:
    kind = stages.kind(step.stage.kind)
    process.reap(step.key)  # left by a driver that was killed
    started = time.time()
    for retry in range(limits.retries + 1):
        attempt = _next_attempt(step.folder)
        job = step.job(todo.pythons, attempt)
        job.attempt.mkdir(parents=True)
        job.work.mkdir(exist_ok=True)
        if limits.verify:
            digest = inputs.get(forward.ROLE) or step.parts["inputs"].get(forward.ROLE, "")
            job = forward.model(job, todo.space, digest, _runner(step, limits, watch, warm))
        command = kind.command(job)
        try:
            peak = _run_command(command, job, limits, watch, step, warm) if command is not None else 0
            break
        except Passing as error:
            if retry == limits.retries:
                raise
            (job.attempt / "retried.txt").write_text(f"{error}\n")
            wait = BACK_OFF_SECONDS * 2**retry
            watch.note(step, f"{str(error).splitlines()[0]} Attempt {attempt + 1} follows in {wait:.0f} s")
            time.sleep(wait)
    aside = step.folder / ".publishing"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        figures = kind.collect(job, aside)
    except StageFailed as error:
        raise StageFailed(f"stage {step.stage.name}: {error}\nlog: {_log(job)}") from error
    _sync(aside)
    if job.output.exists():
        job.output.rename(step.folder / f"superseded-{attempt}")
    aside.rename(job.output)
    sums = manifest.write(step.folder)
    _sync_folder(step.folder)
    entry = Entry(
        key=step.key,
        kind=step.stage.kind,
        name=step.stage.name,
        output=str(job.output.relative_to(todo.space.root)),
        digest=identity.digest_of(sums),
        fingerprint=identity.fingerprint(job.output),
        identity=dict(step.parts),
        inputs=inputs,
        figures=figures,
        started=started,
        seconds=time.time() - started,
        peak_memory=peak,
        attempt=attempt,
    )
    card.write(step, entry, todo.recipe)
    ledger.append(todo.space.ledger, entry)
    return entry


def _run_command(command: Command, job: Job, limits: Limits, watch: Watcher, step: Step, warm: Warm | None) -> int:
    """Runs a stage's command to a good end; returns its peak memory. Raises UserError or StageFailed otherwise."""
    kind = stages.kind(job.stage.kind)
    script = job.attempt / "command.sh"
    script.write_text(process.shell_script(command))
    script.chmod(0o755)
    last: list[Progress | None] = [None]
    moved = [0.0]
    space = disk.Watch(job)

    def tick() -> None:
        now = kind.progress(job)
        if now != last[0]:
            last[0], moved[0] = now, time.time()
        watch.tick(step, now)

    def alive() -> float:  # asked as long as the stage runs: one that has ended needs no space to go on
        space.look(last[0], kind.resume_point)
        return moved[0]

    if warm is not None:  # what has no framework to import does not wait for one
        command = warm.command(command, PATIENCE if kind.FRAMEWORKS else 0.0)
    beside = warm.mark if warm is not None else None
    killed = failure.memory_kills()
    outcome = process.run(command, job.key, _log(job), tick, alive, limits.stall_seconds, beside, limits.stage_seconds)
    (job.attempt / "outcome.json").write_text(
        json.dumps({"code": outcome.code, "seconds": outcome.seconds, "peak_memory": outcome.peak_memory}) + "\n"
    )
    if outcome.code == 0 and outcome.stopped is None:
        return outcome.peak_memory
    if outcome.code == USER_ERROR and outcome.stopped is None:
        raise UserError(f"stage {job.stage.name}: {process.tail(_log(job), 1)}")
    found = failure.cause(_log(job), failure.memory_kills() > killed)
    raise (Passing if found.passing else StageFailed)(
        f"stage {job.stage.name} ({job.stage.kind}) {outcome.stopped or _ended(outcome.code)} [{found.blame}]: "
        f"{found.advice}. Its last lines:\n{process.tail(_log(job))}\n"
        f"log: {_log(job)}\nrun it by hand: {script}\nthe same synergy command continues from its last checkpoint"
    )


def _runner(step: Step, limits: Limits, watch: Watcher, warm: Warm | None) -> forward.Run:
    """Runs a short program beside a stage, under its mark."""

    def run(command: Command, log: Path) -> int:
        given = command if warm is None else warm.command(command, PATIENCE)
        born, beside = time.time(), warm.mark if warm is not None else None
        return process.run(
            given, step.key, log, lambda: watch.tick(step, None), lambda: born, limits.stall_seconds, beside
        ).code

    return run


def _ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _log(job: Job) -> Path:
    return job.attempt / "log.txt"


def _next_attempt(folder: Path) -> int:
    return 1 + max((int(p.name.removeprefix("attempt-")) for p in folder.glob("attempt-*")), default=0)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Execution: runs the steps of a plan, one after the other or side by side on a cluster, and publishes what they make.

Publish = collect aside, verify, fsync, rename (``publish``), then one line in the ledger. Whatever is killed before that line
was written is not there, and the next run continues from the framework's own last checkpoint.
"""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from synergy import stages
from synergy.cluster import attach
from synergy.cluster.room import Room
from synergy.driver import (
    card,
    disk,
    failure,
    forward,
    identity,
    ledger,
    lock,
    orphans,
    process,
    publish,
    side_by_side,
    store,
    taken,
)
from synergy.driver.keep import Keeper
from synergy.driver.ledger import Entry
from synergy.driver.plan import Plan, Step
from synergy.driver.transfer import Transfer
from synergy.driver.warm import PATIENCE, Warm
from synergy.errors import Passing, StageFailed, UserError
from synergy.stages import Command, Job, Progress

USER_ERROR = 2
"""Exit code by which a program of ours says that its last line is a message for the user."""


BACK_OFF_SECONDS = 10.0
"""Before the first retry; twice as long before each further one."""


@dataclass(frozen=True)
class Limits:
    """How long a stage may be silent, and may take in all (None: as long as it does); how many more attempts a failure gets
    that may pass by itself; whether native checkpoints stay after a stage is published; whether a forward pass shows that a
    stage's loader reads its model as it is; whether a run directory is taken over from a driver that gives no sign of life."""

    stall_seconds: float = 1800.0
    stage_seconds: float | None = None
    retries: int = 0
    keep_work: bool = False
    verify: bool = False
    takeover: bool = False


@dataclass(frozen=True)
class Held:
    """A run directory in this driver's hands. still: raises UserError once it is not any more. register: of its processes.
    publishing: held by the stage that adds to the ledger, or takes away what nothing needs any more. room: of the cluster."""

    still: Callable[[], None]
    register: orphans.Register
    room: Room | None = None
    publishing: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class Watcher:
    """What the display wants to hear: a stage starts, moves on, and is done (with the word for how); note: what else people
    should know of it."""

    start: Callable[[Step], None]
    tick: Callable[[Step, Progress | None], None]
    done: Callable[[Step, str, float], None]
    note: Callable[[Step, str], None] = lambda step, text: None


def run(
    todo: Plan,
    limits: Limits,
    watch: Watcher,
    warm: Warm | None = None,
    keeper: Keeper | None = None,
    room: Room | None = None,
) -> list[Entry]:
    """Runs the plan; returns the ledger entries of all its stages, in order. One driver at a time per run directory. room: of
    a cluster, where stages that don't need each other run side by side; None: one after the other.

    Raises UserError, or StageFailed; a full disk is one, and leaves what is published as it is.
    """
    root, stop = todo.space.root, side_by_side.Stop()
    try:
        with lock.held(root, limits.takeover) as mine:
            if todo.space.store:
                store.remember(root, todo.space.store)
            left = orphans.sweep(root, spare=warm.mark if warm else None)

            def still() -> None:
                stop()
                mine()

            held = Held(still, orphans.Register(root), room)
            if warm is not None:
                held.register.mark(warm.mark)
            run = _Run(todo, limits, _locked(watch) if room else watch, held, warm, keeper, left)
            if room is None:
                for step in todo.steps:
                    run.step(step)
            else:
                side_by_side.run(todo.steps, room, run.step, run.watch.note, stop)
            run.let_go()
            if warm is None:  # else the next driver finds that they have ended
                held.register.close()
            return [run.entries[step.stage.name] for step in todo.steps]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageFailed(f"{root} [machine]: {failure.DISK.advice}") from error


def _locked(watch: Watcher) -> Watcher:
    """The same for several threads."""
    lock = threading.RLock()

    def one_at_a_time(tell: Callable[..., None]) -> Callable[..., None]:
        def tell_one(*args: object) -> None:
            with lock:
                tell(*args)

        return tell_one

    told = one_at_a_time
    return Watcher(told(watch.start), told(watch.tick), told(watch.done), told(watch.note))


@dataclass
class _Run:
    """A plan while it runs. left: how many processes of a killed driver were ended before. entries: of the stages that are
    done."""

    todo: Plan
    limits: Limits
    watch: Watcher
    held: Held
    warm: Warm | None
    keeper: Keeper | None
    left: int
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def transfer(self) -> Transfer:
        return Transfer(self.todo.space, self.held.publishing, self.held.still, self.watch.tick, self.watch.note)

    def step(self, step: Step) -> None:
        self.watch.start(step)
        if self.left:
            self.watch.note(step, f"ended {self.left} processes that a killed driver had left")
            self.left = 0
        name, entries = step.stage.name, self.entries
        if step.action == "reuse" and step.entry is not None:
            entries[name] = self.transfer.have(step)
            self.tidy(step, None if self.todo.space.store else self.keeper)
            self.watch.done(step, "reused", 0.0)
            return
        try:
            forward.inputs(step, self.todo.space, entries)
            inputs = {role: entries[name].digest for role, name in step.stage.inputs.items() if name in entries}
            entries[name] = entry = _run_step(step, self.todo, self.limits, self.watch, inputs, self.held, self.warm)
        except StageFailed as error:
            error.folder = step.folder
            raise
        self.transfer.send(step, entry)
        self.tidy(step, self.keeper)
        warning = entry.figures.get("warning")
        self.watch.done(step, f"done; {warning}" if warning else "done", entry.seconds)

    def tidy(self, step: Step, keeper: Keeper | None) -> None:
        with self.held.publishing:
            _tidy(step, self.limits.keep_work, keeper)

    def let_go(self) -> None:
        """What went to the store before may go here at the end, as far as run.keep says."""
        if self.todo.space.store and self.keeper is not None:
            for step in self.todo.steps:
                self.keeper.done(step)


def _tidy(step: Step, keep_work: bool, keeper: Keeper | None) -> None:
    """Native checkpoints of a published stage go; a driver killed right after publishing leaves them to the next."""
    if not keep_work:
        shutil.rmtree(step.folder / "work", ignore_errors=True)
    if keeper is not None:
        keeper.done(step)


def _run_step(
    step: Step, todo: Plan, limits: Limits, watch: Watcher, inputs: dict[str, str], held: Held, warm: Warm | None
) -> Entry:
    kind = stages.kind(step.stage.kind)
    thought = taken.before(step, todo)
    started, clock = time.time(), time.monotonic()
    for retry in range(limits.retries + 1):
        attempt = _next_attempt(step.folder)
        job = step.job(todo.pythons, attempt)
        job.attempt.mkdir(parents=True)
        job.work.mkdir(exist_ok=True)
        held.register.mark(str(job.folder))
        try:
            peak = most = 0
            if limits.verify:
                digest = inputs.get(forward.ROLE) or step.parts["inputs"].get(forward.ROLE, "")
                job = forward.model(job, todo.space, digest, _runner(step, limits, watch, held, warm))
            if (command := kind.command(job)) is not None:
                peak, most = _run_command(attach.spread(command, job.stage), job, limits, watch, step, held, warm)
            break
        except Passing as error:
            if retry == limits.retries:
                raise
            (job.attempt / "retried.txt").write_text(f"{error}\n")
            wait = BACK_OFF_SECONDS * 2**retry
            watch.note(step, f"{str(error).splitlines()[0]} Attempt {attempt + 1} follows in {wait:.0f} s")
            time.sleep(wait)
            _room_again(step, watch, held)
    aside = step.folder / ".publishing"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        figures = kind.collect(job, aside)
    except StageFailed as error:
        raise StageFailed(f"stage {step.stage.name}: {error}\nlog: {_log(job)}") from error
    with held.publishing:
        held.still()
        sums = publish.publish(aside, job.output, step.folder / f"superseded-{attempt}", named=step.entry is not None)
        seconds = time.monotonic() - clock
        entry = Entry(
            key=step.key,
            kind=step.stage.kind,
            name=step.stage.name,
            output=str(job.output.relative_to(todo.space.root)),
            digest=identity.digest_of(sums),
            fingerprint=identity.fingerprint(job.output),
            identity=dict(step.parts),
            inputs=inputs,
            figures=figures | taken.after(step.stage, thought, figures, seconds, max(most, disk.size(step.folder))),
            started=started,
            seconds=seconds,
            peak_memory=peak,
            attempt=attempt,
        )
        card.write(step, entry, todo.recipe)
        ledger.append(todo.space.ledger, entry)
        return entry


def _room_again(step: Step, watch: Watcher, held: Held) -> None:
    """A node may be gone: the stage waits until the cluster has what it needs."""
    if held.room is not None:
        held.room.release(step.stage)
        held.room.wait([step.stage], lambda text: watch.note(step, text), held.still)


def _run_command(
    command: Command, job: Job, limits: Limits, watch: Watcher, step: Step, held: Held, warm: Warm | None
) -> tuple[int, int]:
    """Runs a stage's command to a good end; returns the most bytes that it had of the host's memory, and that its folder had
    as far as it was looked at. Raises UserError or StageFailed otherwise."""
    kind = stages.kind(job.stage.kind)
    script = job.attempt / "command.sh"
    script.write_text(process.shell_script(command))
    script.chmod(0o755)
    last: list[Progress | None] = [None]
    space = disk.Watch(job)

    def tick() -> None:
        held.still()
        room = held.room if step.stage.kind == "rl" else None  # of the others ray_nodes tells
        if room and (lost := room.lost(step.stage, attach.namespace(job))):
            raise Passing(f"stage {step.stage.name} (rl) [machine]: a Ray node was lost: {lost}.")
        last[0] = kind.progress(job)
        watch.tick(step, last[0])

    def alive() -> object:  # asked as long as the stage runs: one that has ended needs no space to go on
        space.look(last[0], kind.resume_point)
        return last[0]

    if warm is not None:  # what has no framework to import does not wait for one
        command = warm.command(command, PATIENCE if kind.FRAMEWORKS else 0.0)
        if kind.FRAMEWORKS and (why := warm.why_not()):
            watch.note(step, f"imports for itself, since the warm start (run.warm) has ended: {why}")
    beside = warm.mark if warm is not None else None
    killed, seen = failure.memory_kills(), held.register.seen
    outcome = process.run(
        command, str(job.folder), _log(job), tick, alive, limits.stall_seconds, beside, limits.stage_seconds, seen
    )
    (job.attempt / "outcome.json").write_text(
        json.dumps({"code": outcome.code, "seconds": outcome.seconds, "peak_memory": outcome.peak_memory}) + "\n"
    )
    if outcome.failed is None:
        return outcome.peak_memory, space.most
    if outcome.code == USER_ERROR and outcome.stopped is None:
        raise UserError(f"stage {job.stage.name}: {process.tail(_log(job), 1)}")
    found = failure.cause(_log(job), failure.memory_kills() > killed)
    raise (Passing if found.passing else StageFailed)(
        f"stage {job.stage.name} ({job.stage.kind}) {outcome.failed} [{found.blame}]: "
        f"{found.advice}. Its last lines:\n{process.tail(_log(job))}\n"
        f"log: {_log(job)}\nrun it by hand: {script}\nthe same synergy command continues from its last checkpoint"
    )


def _runner(step: Step, limits: Limits, watch: Watcher, held: Held, warm: Warm | None) -> forward.Run:
    """Runs a short program beside a stage, under its mark."""

    def run(command: Command, log: Path) -> process.Outcome:
        given = attach.spread(command, step.stage, nodes=1) if warm is None else warm.command(command, PATIENCE)
        beside = warm.mark if warm is not None else None
        stall, seen = limits.stall_seconds, held.register.seen

        def tick() -> None:
            held.still()
            watch.tick(step, None)

        return process.run(given, str(step.folder), log, tick, lambda: None, stall, beside, None, seen)

    return run


def _log(job: Job) -> Path:
    return job.attempt / "log.txt"


def _next_attempt(folder: Path) -> int:
    return 1 + max((int(p.name.removeprefix("attempt-")) for p in folder.glob("attempt-*")), default=0)

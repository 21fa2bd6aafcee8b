"""Stages that don't need each other run at the same time, as far as the cluster has room; each in a thread of the driver's.

Of those that could begin, the one with the most stages after it in a row goes first: training before an evaluation for which
nobody waits. Room is kept for one that waits for its data alone, which are soon prepared. When one fails, nothing new begins
and what runs is let finish, so that no work is lost; then the failure is told. An interruption ends them all.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from synergy import interrupt
from synergy.cluster.room import Room
from synergy.driver.plan import Step

Do = Callable[[Step], None]


class Stop:
    """Asked about once a second by every running stage, and by who waits for room; raises once the user, or another stage,
    has ended them all."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        interrupt.check()
        if self.event.is_set():
            raise KeyboardInterrupt


def run(steps: Sequence[Step], room: Room, do: Do, note: Callable[[Step, str], None], stop: Stop) -> None:
    """Calls ``do`` for every step, none before all that it reads is done. Raises what the first one that failed raised.

    note: hears why a step waits, and that others finish after a failure."""
    after = _after(steps)
    pending, running = sorted(steps, key=lambda step: -after[step.stage.name]), dict[Future[None], Step]()
    failure: BaseException | None = None
    with ThreadPoolExecutor(max_workers=max(1, len(steps)), thread_name_prefix="stage") as pool:
        try:
            while pending or running:
                able = [] if failure else _able(pending, running.values())
                claimed = room.claim([step.stage for step in able])
                ready = _ready(able, [*pending, *running.values()])
                chosen = [step for step in ready if step.stage in claimed]
                for stage in claimed:
                    if not any(step.stage is stage for step in chosen):
                        room.release(stage)
                if ready and not chosen and not running:
                    first = room.wait([step.stage for step in ready], functools.partial(note, ready[0]), stop)
                    chosen = [step for step in ready if step.stage is first]
                for step in chosen:
                    pending.remove(step)
                    running[pool.submit(do, step)] = step
                if not running:
                    break  # after a failure
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    room.release(step.stage)
                    if (error := future.exception()) is not None and failure is None:
                        failure = error
                        if running:
                            note(
                                step,
                                f"failed; {', '.join(s.stage.name for s in running.values())} still runs to its end",
                            )
        except BaseException:
            stop.event.set()
            raise
    if failure is not None:
        raise failure


def _after(steps: Sequence[Step]) -> dict[str, int]:
    """How many stages wait in a row for each. steps: in an order in which each comes after all that it reads."""
    made = {step.stage.name: 0 for step in steps}
    for step in reversed(steps):
        for name in made.keys() & set(step.stage.inputs.values()):
            made[name] = max(made[name], made[step.stage.name] + 1)
    return made


def _able(pending: Iterable[Step], running: Iterable[Step]) -> list[Step]:
    """Those that can begin, and those that can once their data are prepared. pending: each after all that it reads."""
    found, soon = list[Step](), {step.stage.name: step.stage.kind == "prepare" for step in running}
    for step in pending:
        able = all(soon.get(name, True) for name in step.stage.inputs.values())
        soon[step.stage.name] = able and step.stage.kind == "prepare"
        found += [step] if able else []
    return found


def _ready(pending: Sequence[Step], unfinished: Sequence[Step]) -> list[Step]:
    names = {step.stage.name for step in unfinished}
    return [step for step in pending if not names & set(step.stage.inputs.values())]

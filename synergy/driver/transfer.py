"""What goes between a run directory and its store (``run.store``) while a plan runs; nothing where there is no store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from synergy.driver import disk, ledger, store
from synergy.driver.ledger import Entry
from synergy.driver.plan import Step, Workspace
from synergy.stages import Progress


@dataclass(frozen=True)
class Transfer:
    """still: raises when there is no use in going on; tick, note: hear what is being done with a step; publishing: held by
    whoever adds to the ledger."""

    space: Workspace
    publishing: AbstractContextManager[Any]
    still: Callable[[], None]
    tick: Callable[[Step, Progress], None]
    note: Callable[[Step, str], None]

    def have(self, step: Step) -> Entry:
        """The entry of a step that is reused: what is missing here comes from the store, what is missing there goes to it."""
        assert step.entry is not None
        entry = step.entry
        if step.pull and step.stored is not None and self.space.store:
            clock, whole = time.monotonic(), step.pull == "output"
            entry = store.pull(self.space.store, step.stored, step.folder, self._telling(step), whole)
            self.still()
            with self.publishing:
                ledger.append(self.space.ledger, entry)
            if whole:
                seconds = time.monotonic() - clock
                self.note(
                    step, f"fetched {disk.told(step.stored.size)} from the store in {seconds:.0f} s, as published"
                )
        elif step.stored is None and (step.folder / "output").exists():
            self.send(step, entry)
        return entry

    def send(self, step: Step, entry: Entry) -> None:
        """Publishes a finished step in the store too."""
        if self.space.store:
            clock = time.monotonic()
            sent = store.send(self.space.store, self.space.root, entry, self._telling(step))
            self.note(step, f"sent {disk.told(sent.size)} to the store in {time.monotonic() - clock:.0f} s")

    def _telling(self, step: Step) -> store.Tell:
        def tell(what: str, done: int, total: int) -> None:
            self.still()
            self.tick(step, Progress(done >> 20, total >> 20, "MB", what))

        return tell

"""Which finished checkpoints stay (``run.keep``), and what becomes of those that don't.

``all``: every one. ``final``: those that a recipe evaluates or ends with; what rounds and parents left in between goes as soon
as nothing planned needs it. A checkpoint that was let go leaves its records, metrics, card and line in the ledger, and a note:
the plan reuses what was made from it, and runs the stage again if something needs the weights once more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synergy import machine
from synergy.driver import ledger, retention
from synergy.driver.ledger import Entry
from synergy.driver.plan import MODELS
from synergy.driver.retention import Item

if TYPE_CHECKING:
    from synergy.driver.plan import Plan, Step

FINAL = "final.txt"
"""In the folder of a stage whose checkpoint some recipe evaluates or ends with: no policy takes it."""
_NATIVE_BYTES = 1_000_000
"""Native configs are smaller; larger files of an attempt are logs."""


@dataclass
class Keeper:
    """Applies a policy while plans are run. pending: keys of the stages that are still to be made, in all of the plans."""

    policy: str
    plans: Sequence[Plan]
    pending: set[str]

    @classmethod
    def of(cls, policy: str, plans: Sequence[Plan]) -> Keeper:
        return cls(policy, plans, pending(plans))

    def done(self, step: Step) -> None:
        """A stage is finished: what only it needed may go. Called by the driver that holds the run directory's lock."""
        self.pending.discard(step.key)
        if _final(step, self.plans) and not (step.folder / FINAL).exists():
            machine.replace_text(step.folder / FINAL, "a recipe evaluates this checkpoint or ends with it: it stays\n")
        if self.policy == "final":
            root = step.folder.parent.parent
            retention.take(root, spent(root, self.plans, self.pending))


def pending(plans: Sequence[Plan]) -> set[str]:
    """Keys of the stages that are to be made."""
    return {step.key for todo in plans for step in todo.steps if step.action != "reuse"}


def spent(root: Path, plans: Sequence[Plan], unfinished: Collection[str]) -> list[Item]:
    """The checkpoints in a run directory that ``final`` lets go: of stages of these plans that none of them evaluates and all
    of whose users are finished. unfinished: keys of the stages still to be made. What the ledger knows as evaluated stays,
    and so does what an unfinished stage of another recipe was started from."""
    entries = ledger.read(root / "ledger.jsonl")
    steps = {step.folder: step for todo in plans for step in todo.steps if step.folder.is_relative_to(root)}
    found = []
    for folder, step in steps.items():
        entry, output = entries.get(step.key), folder / "output"
        if step.stage.kind not in MODELS or entry is None or not output.is_dir():
            continue
        users = [user.key for todo in plans for user in todo.steps if output in user.inputs.values()]
        busy = any(key in unfinished or key not in entries for key in (step.key, *users))
        if not busy and not _final(step, plans) and not (folder / FINAL).exists():
            why = f"the checkpoint of {entry.name} ({entry.kind}): what was made from it is finished (run.keep=final)"
            found.append(Item(output, why, entry))
    if not found:
        return []
    evaluated = {entry.inputs.get("model") for entry in entries.values() if entry.kind == "evaluate"}
    others = _started_from(root, entries)
    return [i for i in found if i.entry and i.entry.digest not in evaluated and i.path.parent.name not in others]


def _final(step: Step, plans: Sequence[Plan]) -> bool:
    """Whether one of the plans evaluates a checkpoint, or ends with it: there nothing builds on it."""
    if step.stage.kind not in MODELS:
        return False
    for todo in (todo for todo in plans if any(step.folder == one.folder for one in todo.steps)):
        kinds = [user.stage.kind for user in todo.steps if step.folder / "output" in user.inputs.values()]
        if not kinds or "evaluate" in kinds:
            return True
    return False


def _started_from(root: Path, entries: Mapping[str, Entry]) -> set[str]:
    """Names of the stage folders that unfinished stages read, as far as their attempts' native configs tell."""
    finished = {Path(entry.output).parent.name for entry in entries.values()}
    texts = [
        file.read_text(errors="replace")
        for file in root.glob("stages/*/attempt-*/*")
        if file.parent.parent.name not in finished and file.is_file() and file.stat().st_size < _NATIVE_BYTES
    ]
    return {name for name in finished if any(name in text for text in texts)}

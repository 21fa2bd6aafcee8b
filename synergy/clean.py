"""``python -m synergy.clean [RUN|STORE] [recipe=… …]``: what in a run directory may go, and with ``--yes`` it goes.

Without a recipe: leftovers, which nothing needs any more. With recipes (``-m`` for several, as for ``run``): also every
finished stage that none of them needs, and with ``run.keep=final`` the checkpoints that their rounds left in between.
With ``--unfinished``: also stages that were begun and not finished, and data that were read and never prepared. Of a store
(run.store, a URL): uploads that were broken off a week ago or more; a finished stage never goes from there, whatever run.keep
says and whatever version wrote it. Nothing is deleted without ``--yes``, and never while a driver works there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synergy import cli
from synergy.driver import keep, ledger, plan, retention, store
from synergy.driver.ledger import Entry
from synergy.driver.retention import Item
from synergy.errors import UserError
from synergy.report import form

if TYPE_CHECKING:
    from synergy.compose import Task

YES, UNFINISHED = "--yes", "--unfinished"


def of_folder(root: Path, unfinished: bool, act: bool) -> None:
    """Leftovers of a run directory. Raises UserError for a folder that is none."""
    entries = _entries(root)
    items = retention.leftovers(root, entries)
    _settle(root, items + (retention.unfinished(root, entries) if unfinished else []), act)


def _entries(root: Path) -> dict[str, Entry]:
    """Of a run directory's ledger. Raises UserError for a folder that is none."""
    entries = ledger.read(root / "ledger.jsonl")
    if not entries and not any((root / name).is_dir() for name in ("stages", retention.DATA)):
        raise UserError(f"{root} is no run directory: it has neither ledger.jsonl nor stages/ nor data/; see run.dir")
    return entries


def of_recipes(tasks: list[Task], unfinished: bool, act: bool) -> None:
    """Leftovers, and finished stages that none of the jobs needs."""
    plans = []
    for task in tasks:
        with task.telling():
            plans.append(plan.of_config(task.cfg))
    spaces = {todo.space.root for todo in plans}
    if len(spaces) > 1:
        raise UserError(f"these jobs have several run directories ({', '.join(map(str, spaces))}): clean one at a time")
    root, needed = spaces.pop(), {step.key for todo in plans for step in todo.steps}
    entries = _entries(root)
    items = retention.unneeded(root, entries, needed)
    if unfinished:
        wanted = {step.folder for todo in plans for step in todo.steps}
        items += [item for item in retention.unfinished(root, entries) if item.path not in wanted]
    if all(task.cfg.run.keep == "final" for task in tasks):
        items += keep.spent(root, plans, keep.pending(plans))
    going = {item.path for item in items}
    _settle(root, items + [i for i in retention.leftovers(root, entries) if i.path.parent not in going], act)


def of_store(url: str, act: bool) -> None:
    """Uploads in a store that were broken off. Raises UserError for one that can't be read."""
    (found, torn), console = store.left_over(url), Console(width=None if sys.stdout.isatty() else 160)
    for path in torn:
        console.print(
            f"{path} can't be read, so all of its stage stays; delete it if it is damaged, and a run makes that stage anew",
            soft_wrap=True,
        )
    for left in found:
        console.print(f"{left.place}: an upload that was broken off, {form.memory(left.size)}", soft_wrap=True)
        if act:
            store.delete(url, left)
    size = form.memory(sum(left.size for left in found))
    how = f"deleted, {size} free" if act else f"{size}; the same command with {YES} deletes them"
    console.print(f"{len(found)} in {url}: {how}" if found else f"nothing to clean in {url}", soft_wrap=True)


def _settle(root: Path, items: list[Item], act: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not items:
        console.print(f"nothing to clean in {root}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "why", "frees"):
        table.add_column(name, overflow="fold")
    for item in items:
        frees = form.memory(retention.freed([item]))
        table.add_row(str(item.path.relative_to(root)), escape(item.why), frees)
    console.print(table)
    size = form.memory(retention.freed(items))
    if act:
        retention.remove(root, items)
        console.print(f"deleted {len(items)} of these in {root}: {size} free")
    else:
        console.print(f"would delete {len(items)} in {root} and free {size}; the same command with {YES} does it")


def main() -> int:
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    act, unfinished = YES in words, UNFINISHED in words
    words = [word for word in words if word not in (YES, UNFINISHED)]
    if any("=" in word or word.startswith("-") for word in words):
        sys.argv[1:] = words
        return cli.with_config(lambda tasks: of_recipes(tasks, unfinished, act))
    return cli.ended(lambda: _of_place(words, unfinished, act))


def _of_place(words: list[str], unfinished: bool, act: bool) -> None:
    if len(words) > 1:
        raise UserError(f"one run directory at a time, not {' '.join(words)}")
    if words and "://" in words[0]:
        of_store(words[0], act)
    else:
        of_folder(Path(words[0] if words else "runs").expanduser().resolve(), unfinished, act)


if __name__ == "__main__":
    sys.exit(main())

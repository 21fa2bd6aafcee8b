"""``python -m synergy.status [RUN]``: what a run directory holds and what its driver does now, or how it ended.

With ``--verify`` every finished stage is read whole and compared with what was published. Where the run directory has a store
(run.store), it is asked which of the finished stages it has.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from synergy import cli
from synergy.driver import ledger, manifest, retention, scan, state, store
from synergy.driver.ledger import Entry
from synergy.driver.state import StageState, State
from synergy.errors import UserError
from synergy.report import form

COLOURS = {"waiting": "dim", "running": "yellow", "reused": "green", "done": "green", "failed": "red"}


def show(root: Path, console: Console) -> None:
    """Prints it. Raises UserError for a folder that no run has written."""
    found, entries = state.read(root), ledger.read(root / "ledger.jsonl")
    if found is None and not entries:
        there = [name for name in (state.FILE, "ledger.jsonl") if (root / name).exists()]
        why = (
            f"no line of its {' and '.join(there)} can be read"
            if there
            else f"it has neither {state.FILE} nor ledger.jsonl"
        )
        raise UserError(f"{root} is no run directory: {why}; see run.dir")
    if found is not None:
        _driver(found, root, console)
    kinds = [entry.kind for entry in entries.values()]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "none"
    console.print(f"finished stages in {root}: {counts}")
    if url := store.remembered(root):
        console.print(_stored(url, entries), soft_wrap=True)
    for page in sorted(root.glob("reports/*/report.html")):
        console.print(f"report: {page}")


def _stored(url: str, entries: Mapping[str, Entry]) -> str:
    """What the store behind a run directory has of its finished stages; one that can't be asked is no error here."""
    try:
        found = store.find(url, entries)
    except UserError as error:
        return f"[red]unknown[/]: {escape(str(error))}"
    there = {key for key, results in found.items() if any(one.entry.digest == entries[key].digest for one in results)}
    lacking = [f"{entry.name} ({entry.kind})" for key, entry in entries.items() if key not in there]
    size = form.memory(sum(one.size for key in there for one in found[key] if one.entry.digest == entries[key].digest))
    if lacking:
        return f"in the store {escape(url)}: {len(there)} of them, {size}; [yellow]not yet[/]: {escape(', '.join(lacking))}"
    return f"in the store {escape(url)}: all of them, {size}"


def verify(root: Path, console: Console) -> bool:
    """Whether all finished stages are what was published; tells of each that is not."""
    scan.forget()
    entries = ledger.read(root / "ledger.jsonl")
    good = True
    there = [entry for entry in entries.values() if not retention.pruned((root / entry.output).parent, entry)]
    for entry in track(there, "reading", console=console, transient=True):
        wrong = manifest.verify(root, entry.output, entry.digest)
        if wrong is not None:
            good = False
            console.print(f"[red]damaged[/]: {escape(wrong)}. Put it back, or the next run makes it anew")
    gone = len(entries) - len(there)
    if gone:
        console.print(f"{gone} checkpoints were let go (run.keep=final), or are in the store alone")
    console.print(f"{len(there)} finished stages read" + (", all as published" if good else ""))
    return good


def _driver(found: State, root: Path, console: Console) -> None:
    console.print(f"[bold]{escape(found.command)}[/], started {_when(found.started)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "kind", "state", "progress", "time", "why, or what for", "in"):
        table.add_column(name, overflow="fold")
    for stage in found.stages:
        table.add_row(*_cells(stage, found))
    console.print(table)
    console.print(_end(found, root))


def _cells(stage: StageState, found: State) -> tuple[str, ...]:
    word = stage.state
    if word == "running" and found.alive is False:
        word = "failed"
    seconds = found.beat - stage.started if stage.state == "running" else stage.seconds
    why = stage.why if word in ("reused", "waiting") else stage.note
    progress = f"{stage.unit} {stage.done} of {stage.total} {stage.figure}".strip() if stage.total else ""
    colour = f"[{COLOURS[word]}]{word}[/]"
    time_ = form.seconds(seconds) if seconds else ""
    return stage.name, stage.kind, colour, escape(progress), time_, escape(why), f"[dim]{stage.folder}[/]"


def _end(found: State, root: Path) -> str:
    where = f"process {found.pid} on {found.host}"
    if found.alive:
        return f"[yellow]running[/], {where}; last sign of life {form.seconds(max(0.0, time.time() - found.beat))} ago"
    if found.alive is None:
        return f"unknown: {where} last wrote {_when(found.beat)}; look there"
    if found.ended == "finished":
        return f"[green]finished[/] {_when(found.beat)}"
    why = found.ended or f"{where} was killed; its last sign of life was {_when(found.beat)}"
    return f"[red]stopped[/]: {escape(why)}\nthe same command continues it"


def _when(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp))


def main() -> int:
    parser = argparse.ArgumentParser(prog="synergy status", description=__doc__)
    parser.add_argument("run", nargs="?", default="runs", help="the run directory (run.dir); default: runs")
    parser.add_argument("--verify", action="store_true", help="read every finished stage whole; exit code 1 for damage")
    arguments = parser.parse_args()
    root, console = (
        Path(arguments.run).expanduser().resolve(),
        Console(width=None if sys.stdout.isatty() else 160),
    )

    def act() -> int:
        show(root, console)
        return 0 if not arguments.verify or verify(root, console) else 1

    return cli.ended(act)


if __name__ == "__main__":
    sys.exit(main())

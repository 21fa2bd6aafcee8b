"""``python -m synergy.plan recipe=<name>``: what run would do, stage by stage, and why."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from synergy import cli, stages
from synergy.config import Config
from synergy.driver import disk, plan

COLOURS = {"reuse": "green", "resume": "yellow", "run": "cyan"}


def action(cfg: Config) -> None:
    todo = plan.of_config(cfg)
    base = next((step.inputs["base"] for step in todo.steps if "base" in step.inputs), None)
    model = disk.weights(base) if base is not None and base.is_dir() else 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "what", "action", "why", "disk", "native command, in"):
        table.add_column(name, overflow="fold")
    for step in todo.steps:
        size = disk.of_step(step, model)
        act = f"[{COLOURS[step.action]}]{step.action}[/]"
        native = f"{stages.kind(step.stage.kind).NATIVE}\n[dim]{step.folder.relative_to(todo.space.root)}[/]"
        table.add_row(step.stage.name, step.stage.note, act, step.why, f"{size / 1e9:.2f} GB" if size else "-", native)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    counts = {name: sum(step.action == name for step in todo.steps) for name in COLOURS}
    told = ", ".join(f"{count} to {name}" for name, count in counts.items() if count)
    console.print(f"{told}; about {disk.needed(todo.steps) / 1e9:.2f} GB of disk in {todo.space.root}")


def main() -> int:
    return cli.with_config(action)


if __name__ == "__main__":
    sys.exit(main())

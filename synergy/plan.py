"""``synergy plan recipe=NAME [key=value ...]``: what run would do with the same words, stage by stage, and why; does nothing.

Of several jobs (``-m``) each stage is shown once, with the jobs that share it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synergy import cli, stages
from synergy.compose import Task
from synergy.driver import cost, disk, plan, sharing, taken
from synergy.driver.plan import Plan, Step
from synergy.report import form
from synergy.stages import fit

COLOURS = {"reuse": "green", "resume": "yellow", "run": "cyan"}


def action(tasks: list[Task]) -> None:
    plans = []
    for task in tasks:
        with task.telling():
            plans.append(plan.of_config(task.cfg))
    show(tasks, plans)


def show(tasks: Sequence[Task], plans: Sequence[Plan]) -> None:
    """Prints what would be done."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    if len(tasks) == 1:
        _one(plans[0], console)
    else:
        _several(tasks, plans, console)
    for said in _unknown(tasks, plans):
        console.print(said, soft_wrap=True, markup=False)


def _unknown(tasks: Sequence[Task], plans: Sequence[Plan]) -> list[str]:
    """What can't be told of stages since their model is the hub's, and was not downloaded yet."""
    found: dict[str, dict[str, None]] = {}
    for task, todo in zip(tasks, plans, strict=True):
        left = [step.stage for step in todo.steps if step.action != "reuse"]
        names = [stage.name for stage in left if stage.kind in plan.MODELS or cost.gpus(stage)]
        if any("base" in step.inputs and not step.inputs["base"].is_dir() for step in todo.steps) and names:
            model = f"{task.cfg.model.path} --revision {task.cfg.model.revision}"
            found.setdefault(model, {}).update(dict.fromkeys(names))
    return [
        f"the model is not here yet: disk, GPU memory and GPU-hours of {', '.join(names)} are not known; download it first: "
        f"hf download {model}"
        for model, names in found.items()
    ]


def _one(todo: Plan, console: Console) -> None:
    left = cost.estimates([todo])
    memory = taken.cells(todo.steps, taken.MEMORY, _gpu_memory(todo.steps))
    hours = taken.cells(todo.steps, taken.HOURS, {folder: str(one) for folder, one in left.items()})
    names = ("disk", *["memory"] * bool(memory), *["GPU hours"] * bool(hours))
    table = _table("stage", "what", "action", "why", *names, "native command, in")
    for step, act, size in _cells(todo.steps):
        native = f"{stages.kind(step.stage.kind).NATIVE}\n[dim]{step.folder.relative_to(todo.space.root)}[/]"
        sizes = (size, *[memory.get(step.folder, "-")] * bool(memory), *[hours.get(step.folder, "-")] * bool(hours))
        table.add_row(step.stage.name, step.stage.note, act, step.why, *sizes, native)
    console.print(table)
    console.print(f"{_counts(todo.steps)} in {todo.space.root}")
    if said := cost.summary(todo.steps, left):
        console.print(said)


def _gpu_memory(steps: Sequence[Step]) -> dict[Path, str]:
    """Of the stages that train on GPUs: what they need at most of each, and of the host, of what there is. By folder."""
    found = {step.folder: fit.needed(step.stage, step.inputs.get("base")) for step in steps if step.action != "reuse"}
    return {
        folder: f"{one[0].whole / 1e9:.0f} of {one[1].memory / 1e9:.0f} GB, on {one[1].count}"
        + f"; host {one[0].host / 1e9:.0f} of {one[1].host / 1e9:.0f}" * bool(one[0].host and one[1].host)
        for folder, one in found.items()
        if one
    }


def _several(tasks: Sequence[Task], plans: Sequence[Plan], console: Console) -> None:
    found = sharing.distinct(plans)
    steps, left = [one.step for one in found], cost.estimates(plans)
    hours = taken.cells(steps, taken.HOURS, {folder: str(one) for folder, one in left.items()})
    table = _table("stage", "what", "jobs", "action", "why", "disk", *["GPU hours"] * bool(hours), "in")
    for one, (step, act, size) in zip(found, _cells(steps), strict=True):
        names = ", ".join(tasks[number].name for number in one.users)
        who = f"all {len(tasks)}" if len(one.users) == len(tasks) else escape(names)
        folder = f"[dim]{step.folder.relative_to(step.folder.parent.parent)}[/]"
        sizes = (size, *[hours.get(step.folder, "-")] * bool(hours))
        table.add_row(step.stage.name, step.stage.note, who, act, step.why, *sizes, folder)
    console.print(table)
    roots = dict.fromkeys(str(todo.space.root) for todo in plans)
    console.print(f"{_counts(steps)} in {', '.join(roots)}")
    if said := cost.summary(steps, left):
        console.print(said)
    console.print(form.saving(sharing.saving(found), len(tasks)))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _cells(steps: Sequence[Step]) -> list[tuple[Step, str, str]]:
    """Each step with its action and the disk that it needs, or needed, in words."""
    left = {step.folder: size for step in steps if (size := disk.estimate(step, steps))}
    sizes = taken.cells(steps, taken.DISK, {folder: f"{size / 1e9:.2f} GB" for folder, size in left.items()})
    return [(step, f"[{COLOURS[step.action]}]{step.action}[/]", sizes.get(step.folder, "-")) for step in steps]


def _counts(steps: Sequence[Step]) -> str:
    counts = {name: sum(step.action == name for step in steps) for name in COLOURS}
    acts = ", ".join(f"{count} to {name}" for name, count in counts.items() if count)
    return f"{acts}; about {disk.needed(steps) / 1e9:.2f} GB of disk"


def main() -> int:
    return cli.with_config(action, __doc__)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m synergy.run recipe=<name>``: runs a recipe to its report."""

from __future__ import annotations

import sys

from synergy import cli, stages
from synergy.config import Config
from synergy.driver import disk, display, execute, plan
from synergy.driver.plan import Plan


def action(cfg: Config) -> None:
    todo = plan.of_config(cfg, fetch=True)
    plan.require_space(todo.space, disk.needed(todo.steps))
    preflight(todo)
    with display.watcher(todo.steps) as watch:
        execute.run(todo, cfg.run.stall_minutes * 60, watch, cfg.run.keep_work)
    if not any(step.stage.kind == "evaluate" for step in todo.steps):
        print(f"{todo.steps[-1].stage.note}: {todo.steps[-1].folder / 'output'}")
        return
    from synergy.report import build  # draws with matplotlib: not before there is something to draw

    print(f"report: {build.write(plan.of_config(cfg))}")


def preflight(todo: Plan) -> None:
    """Every stage that will run checks its settings, before the first one starts."""
    for step in todo.steps:
        if step.action != "reuse":
            stages.kind(step.stage.kind).check(step.stage, todo.pythons)


def main() -> int:
    return cli.with_config(action)


if __name__ == "__main__":
    sys.exit(main())

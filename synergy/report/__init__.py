"""``python -m synergy.report recipe=<name>``: draws the report of a recipe from its finished stages; of several (``-m``) each
one's own, and one over all of them."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from synergy import cli
from synergy.driver import plan
from synergy.report import results

if TYPE_CHECKING:
    from synergy.compose import Task


def action(tasks: list[Task]) -> None:
    found = []
    for task in tasks:
        with task.telling():
            todo = plan.of_config(task.cfg)
            results.require_finished(todo, shlex.join(["python", "-m", "synergy.run", *sys.argv[1:]]))
            found.append((task, todo))
    from synergy.report import build, sweep_page  # draw with matplotlib: not before there is something to draw

    for _, todo in found:
        print(f"report: {build.write(todo)}", flush=True)
    if len(found) > 1:
        print(f"report over all jobs: {sweep_page.write(found)}")


def main() -> int:
    return cli.with_config(action)

"""``synergy report``: the report of a recipe from its finished stages, or finished reports side by side.

synergy report recipe=NAME     draws it; of several (-m) each one's own, and one over all of them
synergy report A B ...         compares: accuracy, length and gain side by side, their differences, and the settings that
                               differ. A, B: a report's folder, its report.json, or a run directory that holds one report.
                               The comparison is written beside A
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from synergy import cli
from synergy.driver import plan
from synergy.errors import UserError
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
    words = sys.argv[1:]
    named = [word for word in words if _is_report(word)]
    if named:
        return cli.ended(lambda: _compare(named, [word for word in words if word not in named]))
    return cli.with_config(action, __doc__)


def _is_report(word: str) -> bool:
    """Overrides have a ``=`` or begin with ``~``; a path may have a ``=`` too."""
    return not word.startswith(("-", "~", "+")) and ("=" not in word or Path(word).exists())


def _compare(named: list[str], other: list[str]) -> None:
    if other:
        raise UserError(f"either reports to compare ({', '.join(named)}) or overrides ({', '.join(other)}), not both")
    from synergy.report import compare_page

    print(f"comparison: {compare_page.write(named)}")

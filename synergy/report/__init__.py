"""``python -m synergy.report recipe=<name>``: draws the report of a recipe from its finished stages."""

from __future__ import annotations

import shlex
import sys

from synergy import cli
from synergy.config import Config
from synergy.driver import plan
from synergy.report import results


def action(cfg: Config) -> None:
    todo = plan.of_config(cfg)
    results.require_finished(todo, shlex.join(["python", "-m", "synergy.run", *sys.argv[1:]]))
    from synergy.report import build  # draws with matplotlib: not before there is something to draw

    print(f"report: {build.write(todo)}")


def main() -> int:
    return cli.with_config(action)

"""``python -m synergy.submit recipe=<name> cluster=ray cluster.address=…``: sends the driver to a Ray cluster as a job, and
follows its log. The job goes on without this terminal: ``synergy job`` asks for it, follows it again, or stops it."""

from __future__ import annotations

import re
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from synergy import cli, environments, paths, stages, strategies
from synergy.cluster import jobs, lacks, needs
from synergy.compose import Task
from synergy.config import Config
from synergy.driver import private
from synergy.errors import UserError

STOP_SECONDS = 60
"""How long a driver that is told to stop has to end its stages before Ray kills them."""


def action(tasks: list[Task]) -> int | None:
    cfg = tasks[0].cfg
    if cfg.cluster.kind != "ray":
        raise UserError(
            "submit sends to a Ray cluster: add cluster=ray cluster.address=http://HEAD:8265 (synergy run works here)"
        )
    wanted = _check(tasks)
    client = jobs.connect(cfg.cluster.address)
    lacks.ray_version(client)
    lacking = lacks.sizes(wanted, jobs.nodes(client), cfg.cluster.late)
    if lacking:
        print(f"the job will wait: {lacking}", flush=True)
    pythons = {str(path) for task in tasks for path in _pythons(task.cfg)}
    lacks.look(client, prefix(cfg), _python(cfg), pythons, folder(cfg))
    name = f"synergy-{re.sub(r'[^a-z0-9]+', '-', tasks[0].recipe.lower()).strip('-')[:40]}-{uuid.uuid4().hex[:6]}"
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **cfg.cluster.env}
    jobs.send(
        client, entrypoint(cfg, sys.argv[1:]), name, env, {"synergy": "run", "run.dir": folder(cfg) or cfg.run.dir}
    )
    print(f"job {name} at {client.address}; it goes on without this terminal:")
    for verb in ("logs", "status", "stop"):
        print(f"  synergy job {verb} {name} --address {client.address}")
    sys.stdout.flush()
    return watch(client, name)


def watch(client: jobs.Client, name: str) -> int:
    """Follows a job to its end; its exit code. Ctrl-C leaves it running."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return jobs.follow(client, name, write)
    except KeyboardInterrupt:
        print(f"\nno longer followed; the job goes on: synergy job logs {name} --address {client.address}", flush=True)
        return 0


def _check(tasks: Sequence[Task]) -> list[needs.Need]:
    """What the stages of all jobs need. Raises UserError for settings that can't be, without reading any data."""
    found = []
    for task in tasks:
        with task.telling():
            private.check(task.cfg)
            found += [need for stage in strategies.stages(task.cfg) if (need := needs.of(stage)) is not None]
    return found


def _pythons(cfg: Config) -> set[Path]:
    kinds = {stage.kind for stage in strategies.stages(cfg)}
    names = {name for kind in kinds for name in stages.kind(kind).FRAMEWORKS}
    return {environments.locate(name, getattr(cfg.frameworks, name)) for name in names}


def _python(cfg: Config) -> str:
    return shlex.quote(cfg.cluster.python or sys.executable)


def folder(cfg: Config) -> str | None:
    """The run directory as all nodes see it; None for one that is no folder."""
    return (
        None if "://" in cfg.run.dir else str(Path(cfg.cluster.workdir or Path.cwd(), Path(cfg.run.dir).expanduser()))
    )


def prefix(cfg: Config) -> str:
    """Shell words that bring a command into the working folder, with this checkout's modules before all others."""
    where = f"cd {shlex.quote(cfg.cluster.workdir or str(Path.cwd()))} && "
    return where + (f"PYTHONPATH={shlex.quote(str(paths.ROOT))} " if paths.CHECKOUT else "")


def entrypoint(cfg: Config, words: Sequence[str]) -> str:
    return f"{prefix(cfg)}{_python(cfg)} -m synergy.run {shlex.join(words)}"


def main() -> int:
    return cli.with_config(action)


if __name__ == "__main__":
    sys.exit(main())

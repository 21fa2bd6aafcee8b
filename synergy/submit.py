"""``synergy submit recipe=NAME cluster=ray ...``: sends the driver to a Ray cluster as a job, and follows its log.

  synergy submit recipe=two_stage cluster=ray cluster.address=http://HEAD:8265    what follows recipe= is as for synergy run
  synergy submit recipe=two_stage cluster=ray --dry-run=slurm                     prints a batch script, and sends nothing
  synergy submit recipe=two_stage cluster=ray --dry-run=kuberay cluster.image=NAME cluster.claim=NAME    prints a RayJob

The job goes on without this terminal: ``synergy job`` asks for it, follows it again, or stops it.
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from synergy import cli, compose, environments, paths, stages, strategies
from synergy.cluster import gpu_memory, jobs, lacks, manifests, needs
from synergy.compose import Task
from synergy.config import Config
from synergy.driver import externals, private
from synergy.errors import UserError

DRY = "--dry-run"
STOP_SECONDS = 60
"""How long a driver that is told to stop has to end its stages before Ray kills them."""


def action(tasks: list[Task], dry: str = "") -> int | None:
    """Sends the jobs as one; exit code of their driver. dry: the form in which they are only printed."""
    cfg = tasks[0].cfg
    if cfg.cluster.kind != "ray":
        to = " (a dry run needs no cluster.address)" if dry else " cluster.address=http://HEAD:8265"
        raise UserError(f"submit sends to a Ray cluster: add cluster=ray{to}; synergy run works here")
    wanted = _check(tasks)
    if dry:
        print(manifests.render(dry, cfg.cluster, tasks[0].recipe, wanted, driver(cfg), _python(cfg)), end="")
        return 0
    client = jobs.connect(cfg.cluster.address)
    lacks.ray_version(client)
    lacking = lacks.sizes(wanted, jobs.nodes(client), cfg.cluster.late)
    if lacking:
        print(f"the job will wait: {lacking}", flush=True)
    pythons = {str(path) for task in tasks for path in _pythons(task.cfg)}
    more = lacks.look(client, there(cfg) + interpreter(cfg), pythons, folder(cfg), sys.argv[1:])
    if more:  # the probe has looked, too; a model may be here and not there yet
        _check(compose.tasks([*sys.argv[1:], *more]))
    name = f"{manifests.name(tasks[0].recipe)}-{uuid.uuid4().hex[:6]}"
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **cfg.cluster.env}
    told = {"synergy": "run", "run.dir": folder(cfg) or cfg.run.dir}
    # exec: when its head is lost, Ray ends the shell that it started, and no child of that.
    jobs.send(client, there(cfg) + f"exec env {driver(cfg, more)}", name, env, told)
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
            if not task.cfg.cluster.workdir:  # else a name may be of a folder there
                externals.require_named(task.cfg)
                gpu_memory.check(task.cfg)
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


def there(cfg: Config) -> str:
    """Shell words that go to the working folder."""
    return f"cd {shlex.quote(cfg.cluster.workdir or str(Path.cwd()))} && "


def interpreter(cfg: Config) -> str:
    """Shell words of the driver's Python, with this checkout's modules before all others."""
    return (f"PYTHONPATH={shlex.quote(str(paths.ROOT))} " if paths.CHECKOUT else "") + _python(cfg)


def driver(cfg: Config, more: Sequence[str] = ()) -> str:
    """Shell words that start the driver, with the words of this command line. more: words that the cluster added."""
    return f"{interpreter(cfg)} -m synergy.run {shlex.join([*sys.argv[1:], *more])}"


def main() -> int:
    dry = [word for word in sys.argv[1:] if word.startswith(DRY)]
    sys.argv = [word for word in sys.argv if word not in dry]
    form = dry[-1].removeprefix(DRY).removeprefix("=") or "slurm" if dry else ""
    return cli.with_config(lambda tasks: action(tasks, form), __doc__)


if __name__ == "__main__":
    sys.exit(main())

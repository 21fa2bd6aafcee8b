"""A warm start for the frameworks' processes: one process imports their libraries once, every stage is a fork of it.

A switch between frameworks costs a start of each: ten seconds of imports before LLaMA-Factory, verl or vLLM does anything,
more than a whole stage at tiny scale. With ``run.warm`` the driver starts ``launch/plugins/warm_start.py`` beside the first
stage and runs the same native commands by its stand-in for python. Another one has what VLMEvalKit imports, and one Ray
cluster serves all of verl's jobs (``launch/plugins/warm_ray.py``). ``command.sh`` names the real python and needs none of
this. CUDA does not survive a fork, so on a host with GPUs the server starts none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synergy import paths, stages
from synergy.driver.plan import Plan
from synergy.driver.process import MARK, reap
from synergy.machine import die_with_parent
from synergy.stages import Command
from synergy.workers.evaluate import WARM as EVALUATION

PREFIX = "synergy-fork-"
"""Of the folder's name, by which launch/plugins/fork_server.py knows its forks."""
CLUSTER = "ray"
"""File in the folder that names the Ray cluster."""
LOG = "log.txt"
"""File in a server's folder with what it and Ray tell."""
VERL = "verl_fork"
"""The launcher of verl that attaches to it."""
PATIENCE = 120.0
"""Seconds that a stage waits for the libraries before it imports for itself."""


@dataclass(frozen=True)
class Warm:
    """python: the interpreter whose libraries are imported. mark: what its processes bear in place of a stage's key. ray: keeps
    verl's cluster. evaluation: the stand-in for VLMEvalKit's python, there once it is ready."""

    python: Path
    folder: Path
    process: subprocess.Popen[bytes]
    mark: str
    ray: subprocess.Popen[bytes] | None = None
    evaluation: Path | None = None

    def ready(self, patience: float) -> bool:
        """Whether the libraries are imported; waits for that, in seconds. False after that, or if they never will be."""
        end = time.monotonic() + patience
        while self.process.poll() is None:
            if (self.folder / "socket").exists():
                return True
            if time.monotonic() >= end:
                break
            time.sleep(0.05)
        return False

    def command(self, command: Command, patience: float = PATIENCE) -> Command:
        """The same command, started by the stand-in if it is this interpreter's, or one of the scripts beside it; verl is told
        where the Ray cluster is, an evaluation of the other stand-in."""
        program = Path(command.argv[0])
        ours = program == self.python
        if not (ours or (program.parent == self.python.parent and _is_script(program))) or not self.ready(patience):
            return command
        stand_in = str(self.folder / "python")
        cluster = self.folder / CLUSTER
        lives = self.ray is not None and self.ray.poll() is None and cluster.exists()  # else verl starts its own
        told = {"SYNERGY_RAY_ADDRESS": cluster.read_text()} if lives else {}
        if self.evaluation is not None:
            told[EVALUATION] = str(self.evaluation)
        argv = (stand_in, *(command.argv[1:] if ours else command.argv))
        return replace(command, argv=argv, env={**command.env, **told})

    def why_not(self) -> str | None:
        """What the server that ended said last; None while it lives, or if it is not known."""
        if self.process.poll() is None:
            return None
        try:
            said = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        except OSError:  # swept, as a folder in which nobody listens
            said = []
        return said[-1] if said else None


def _is_script(program: Path) -> bool:
    try:
        with program.open("rb") as stream:
            return b"python" in stream.readline(200)
    except OSError:  # whoever starts it tells
        return False


def beside(wanted: bool, plans: Sequence[Plan]) -> contextlib.AbstractContextManager[Warm | None]:
    """A warm server for all that the plans will run, or None if it is not wanted or nothing would be imported."""
    steps = [(todo, step.stage) for todo in plans for step in todo.steps if step.action != "reuse"]
    pythons = [(name, todo.pythons[name]) for todo, stage in steps for name in stages.kind(stage.kind).FRAMEWORKS]
    if not wanted or not pythons:
        return contextlib.nullcontext()
    training = Counter(python for name, python in pythons if name != "vlmevalkit")
    evaluation = next((Path(python) for name, python in pythons if name == "vlmevalkit"), None)
    env: dict[str, str] = {}
    for _, stage in steps:
        env = {**stage.settings.get("env", {}), **env}
    clusters = [_ray(stage.settings) for _, stage in steps if stage.kind == "rl" and stage.settings["module"] == VERL]
    return server(Path(training.most_common(1)[0][0]), env, next(iter(clusters), None), evaluation)


def _ray(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What verl would give ``ray.init``."""
    native = [settings[part].get("ray_kwargs", {}).get("ray_init", {}) for part in ("verl", "verl_add")]
    return {**native[0], **native[1]}


@contextlib.contextmanager
def server(
    python: Path,
    env: Mapping[str, str],
    cluster: Mapping[str, Any] | None = None,
    evaluation: Path | None = None,
) -> Iterator[Warm]:
    """Starts importing at once; ends the servers, and so every fork, with the block. env: what the stages' processes have in
    their environment that matters when a library is imported. cluster: ``ray.init``'s arguments, if verl is to run.
    evaluation: VLMEvalKit's interpreter, if it is to run."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # short, as a socket's path must be
    other = folder / "evaluation"
    mark = f"warm-{uuid.uuid4().hex}"
    plugins, plain = paths.ROOT / "launch" / "plugins", dict(os.environ)
    plain.pop("PYTHONDONTWRITEBYTECODE", None)
    full = {**plain, "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **env, MARK: mark}
    started: list[subprocess.Popen[bytes]] = []

    def start(place: Path, *program: str | Path) -> subprocess.Popen[bytes]:
        with (place / LOG).open("ab") as log:
            child = subprocess.Popen(
                program,
                env=full,
                cwd=place,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        started.append(child)
        return child

    try:
        training = start(folder, python, plugins / "warm_start.py", folder)
        ray = None
        if cluster is not None:
            ray = start(folder, python, plugins / "warm_ray.py", folder / CLUSTER, json.dumps(cluster))
        if evaluation is not None:
            other.mkdir()
            start(other, evaluation, plugins / "warm_start.py", other, "evaluation")
        yield Warm(python, folder, training, mark, ray, other / "python" if evaluation is not None else None)
    finally:
        reap(mark)  # while they live: what descends from them has written its title over the mark
        for child in started:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)

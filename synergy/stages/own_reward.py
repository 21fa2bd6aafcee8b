"""A user's own reward function (``reward.path``) in the stages that use one, ``rl`` and ``sample``: tried in a child process
before any long work, named to the framework's processes, and heard when it fails. It is called by reward_fns/own.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from synergy import paths
from synergy.errors import StageFailed, UserError
from synergy.machine import die_with_parent
from synergy.stages import Job

FAILED = "failed.txt"
"""reward_fns/rollouts.py's name; what lies there is not imported by the driver."""
SECONDS = 120.0
"""For loading the file, whatever it imports, and three calls."""


def check(settings: Mapping[str, Any], python: str) -> None:
    """Raises UserError for a function that can't be loaded or called, or returns nonsense; none of it runs in the driver."""
    if "reward" in settings:
        _try(python, _chosen(settings), tuple(settings["env"].items()))


@cache
def _try(python: str, chosen: str, extra: tuple[tuple[str, str], ...]) -> None:
    env = {k: v for k, v in os.environ.items() if k != "SYNERGY_ROLLOUTS"}
    env |= {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **dict(extra), "SYNERGY_REWARD": chosen}
    way_out = "mend the file, or set reward.path=null for the project's own (reward_fns/README.md, Your own reward)"
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [python, "-m", "reward_fns.own"],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            told, errors = child.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            path = json.loads(chosen)["path"]
            raise UserError(
                f"reward.path={path} took longer than {SECONDS:.0f} s for three calls; {way_out}"
            ) from error
        finally:
            if child.poll() is None:  # out of time, or interrupted
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
    last = [line.strip() for line in (told if child.returncode in (0, 2) else errors).splitlines() if line.strip()][-1:]
    if child.returncode != 0 or last != ["ok"]:
        reason = last[0] if last else f"its process ended with code {child.returncode}"
        raise UserError(f"reward function refused: {reason}; {way_out}")


def _chosen(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings["reward"], sort_keys=True)


def env(job: Job) -> dict[str, str]:
    """Which function reward_fns/own.py calls, and where it leaves word of a failure; nothing for the project's own."""
    (job.work / "rollouts" / FAILED).unlink(missing_ok=True)  # of an earlier attempt
    if "reward" not in job.settings:
        return {}
    (job.work / "rollouts").mkdir(exist_ok=True)
    return {"SYNERGY_REWARD": _chosen(job.settings), "SYNERGY_ROLLOUTS": str(job.work / "rollouts")}


def raise_failure(job: Job) -> None:
    """Raises StageFailed when the function failed: asked as the stage runs, since verl would go on without the rollout."""
    file = job.work / "rollouts" / FAILED
    if file.exists():
        told = file.read_text(encoding="utf-8")
        raise StageFailed(
            f"stage {job.stage.name} ({job.stage.kind}) was ended by its reward function.\n{told}\n"
            f"log: {job.attempt / 'log.txt'}\n"
            "with a mended function the stage starts anew; the same one continues from the last checkpoint"
        )

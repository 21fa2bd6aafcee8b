"""The environment that a user gives a Ray job, and the one that RL gives verl's workers there: both reach them.

That they reach a worker of verl's on a real cluster is shown in test_cluster_run.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_conformance import pythons
from test_strategies import config

from synergy import strategies
from synergy.cluster import attach
from synergy.stages import Job

JOB = {"env_vars": {"TOLD_TO_THE_JOB": "here", "OMP_NUM_THREADS": "7"}}
"""What `+cluster.env.…` becomes; the second is one that a stage sets for itself."""


def stage_env(folder: Path) -> dict[str, Any]:
    """runtime_env of verl's ray_init, as the RL stage's overrides have it."""
    stage = next(one for one in strategies.stages(config("rl", "cluster=ray")) if one.kind == "rl")
    job = Job(stage, "k" * 64, folder, folder / "attempt-1", {}, pythons())
    told = attach.verl_overrides(job, stage.settings["env"])
    start = f"++{attach.RAY}.runtime_env.env_vars."
    return {"env_vars": {key.removeprefix(start): value for key, value in told.items() if key.startswith(start)}}


def test_a_job_s_variables_and_a_stage_s_go_together_by_ray_s_override_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl 0.9.1 makes a runtime_env of its own (get_ppo_ray_runtime_env), and looks at the job's for working_dir alone, which
    it sets to None where the job names none: verl#3673 (github.com/verl-project/verl/pull/3673), open. Once that is no more
    so, or Ray merges by itself, attach.OVERRIDE is to be looked at again."""
    constants = pytest.importorskip("verl.trainer.constants_ppo")
    from ray.runtime_env.runtime_env import _merge_runtime_env

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": JOB}))
    verl, stage = constants.get_ppo_ray_runtime_env(), stage_env(tmp_path)
    assert "working_dir" in verl and verl["working_dir"] is None, "verl lets a job's runtime_env be"
    assert stage["env_vars"]["OMP_NUM_THREADS"] == "1" and "TOLD_TO_THE_JOB" not in stage["env_vars"]
    both = {**verl, "env_vars": {**verl["env_vars"], **stage["env_vars"]}}  # as verl's main_ppo merges them
    assert _merge_runtime_env(JOB, both) is None, "Ray refuses no conflict any more"
    assert attach.OVERRIDE == {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    made = _merge_runtime_env(JOB, both, override=True)
    assert made["env_vars"] == {**JOB["env_vars"], **both["env_vars"]}

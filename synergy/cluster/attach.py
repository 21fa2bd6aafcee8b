"""How a stage's native command goes out to the nodes of the cluster that its driver runs in.

verl attaches by itself: its own ``ray_kwargs`` name the cluster and what its workers have in their environment, since workers
of a cluster inherit nothing of the stage's. All else is started on the stage's nodes by ``launch/plugins/ray_nodes.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from synergy import paths
from synergy.cluster import needs
from synergy.cluster.needs import Need
from synergy.stages import Command, Job, Stage

RAY = "ray_kwargs.ray_init"
MODULES, QUEUE, GLOO = "VERL_USE_EXTERNAL_MODULES", "verl_queue", "gloo_interface"
"""verl's hook for plug-ins, the one by which two RL jobs of one cluster have queues of their own, and the one by which gloo's
ranks on several hosts meet."""
OVERRIDE = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
"""Ray's word for: what a stage says of its environment wins over the job's, where they differ (verl#3673)."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """A stage's variables without those about Ray, which are the cluster's to say."""
    return {name: value for name, value in env.items() if not name.startswith("RAY_")}


def namespace(job: Job) -> str:
    """Of an attempt's actors in Ray, by which they are told from those of other stages, and of other people's jobs."""
    return f"{job.folder.name}-{job.attempt.name}"


def verl_overrides(job: Job, env: Mapping[str, str]) -> dict[str, Any]:
    """verl's keys for the cluster: its address, no sizes (Ray refuses them for a cluster that is there), the stage's nodes, and
    its environment. Nothing for a stage on this machine."""
    settings = job.settings
    if needs.SETTING not in settings:
        return {}
    need = Need(**settings[needs.SETTING])
    modules = (env.get(MODULES), QUEUE, GLOO if need.nodes > 1 else None)
    env = {**env, MODULES: ",".join(filter(None, modules))}
    given = {name for part in ("verl", "verl_add") for name in settings[part].get("ray_kwargs", {}).get("ray_init", {})}
    return {
        "trainer.nnodes": need.nodes,
        "trainer.n_gpus_per_node": need.gpus,
        f"++{RAY}.address": "auto",
        f"++{RAY}.namespace": namespace(job),
        **{f"++{RAY}.{name}": None for name in sorted(given - {"address", "namespace", "runtime_env"})},
        **{f"++{RAY}.runtime_env.env_vars.{name}": value for name, value in sorted(environment(env).items())},
    }


def spread(command: Command, stage: Stage, nodes: int | None = None) -> Command:
    """The same command on the stage's nodes; itself where the stage runs beside the driver, or verl attaches. nodes: fewer than
    the stage has."""
    need = needs.of(stage)
    if need is None or (stage.kind == "rl" and nodes is None):
        return command
    count, env = nodes or need.nodes, environment(command.env)
    words = [str(paths.ROOT / "launch" / "plugins" / "ray_nodes.py"), f"--nodes={count}", f"--gpus={need.gpus}"]
    words += [
        f"--cpus={need.cpus:g}",
        f"--memory={int(need.memory_gb * 1e9)}",
        *(f"--env={name}" for name in sorted(env)),
    ]
    return replace(command, argv=(sys.executable, *words, "--", *command.argv), env={**env, **OVERRIDE})

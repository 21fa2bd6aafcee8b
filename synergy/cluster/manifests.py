"""``synergy submit --dry-run=slurm|kuberay``: the same run as a Slurm batch script, or as a RayJob of KubeRay. Sends nothing.

Both bring a Ray cluster of their own up, with as many nodes as the largest stage needs, and start the driver in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from synergy import paths
from synergy.cluster.needs import Need
from synergy.config import Cluster
from synergy.errors import UserError

TEMPLATES = {"slurm": "slurm.sh.j2", "kuberay": "rayjob.yaml.j2"}
HEAD_CPUS = 4.0
"""Of Kubernetes' head pod, for the driver and what it prepares; beside them verl's queue."""
_NAME = 40
"""Characters of a name: Kubernetes appends to it, and allows 63."""


def name(recipe: str) -> str:
    """What a run of a recipe is called on a cluster: letters, digits and hyphens."""
    return ("synergy-" + re.sub(r"[^a-z0-9]+", "-", recipe.lower()))[:_NAME].strip("-")


def render(form: str, cluster: Cluster, recipe: str, needs: Sequence[Need], command: str, python: str) -> str:
    """The script or manifest. command: shell words that start the driver, in cluster.workdir or here; python: its interpreter.

    Raises UserError for another form, and for what the form needs and the config lacks."""
    if form not in TEMPLATES:
        raise UserError(f"--dry-run={form} is one of {', '.join(TEMPLATES)}")
    if form == "kuberay" and not (cluster.image and cluster.claim):
        raise UserError(
            "--dry-run=kuberay needs cluster.image=NAME (with this environment) and cluster.claim=NAME, a persistent volume "
            "claim that all pods mount at cluster.mount"
        )
    told = {
        "name": name(recipe),
        "nodes": max((need.nodes for need in needs), default=1),
        "gpus": max((need.gpus for need in needs), default=0),
        "cpus": f"{max((need.cpus for need in needs), default=1.0):g}",
        "head_cpus": f"{HEAD_CPUS + max((need.other_cpus for need in needs), default=0.0):g}",
        "memory_gb": f"{cluster.memory_gb:g}" if cluster.memory_gb else "",
        "memory": f"{cluster.memory_gb * 1000:.0f}M" if cluster.memory_gb else "0",
        # Else Ray gives away what is free less its object store, which may be too little for what the stages claim.
        "memory_option": f"--memory={int(cluster.memory_gb * 1e9)} " if cluster.memory_gb else "",
        "env": dict(cluster.env),
        "image": cluster.image,
        "claim": cluster.claim,
        "mount": cluster.mount,
        "ray": metadata.version("ray"),
        "command": command,
        "workdir": cluster.workdir or str(Path.cwd()),
        "python": python,
        "bin": str(Path(shlex.split(python)[0]).parent),
    }
    loader = FileSystemLoader(paths.ROOT / "launch" / "templates")
    made = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    made.filters["quote"] = shlex.quote
    return made.get_template(TEMPLATES[form]).render(told)

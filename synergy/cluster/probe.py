"""``python -m synergy.cluster.probe SPEC``: runs as a short job of a cluster, and tells what a driver would find there.

SPEC: JSON of {"pythons": [interpreters], "folder": the run directory, or null}. Prints one line, ``MARK`` and JSON of
:class:`Found`. On every node a task looks whether the interpreters are there, and whether it sees a file that is made in the
folder for the purpose, and taken away again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MARK = "SYNERGY-PROBE "
NODE_SECONDS = 90.0
"""A node that runs no task within this time is told as silent."""


@dataclass(frozen=True)
class Found:
    """python, ray, synergy: versions of the driver's interpreter; source: digest of the package. problems: of single nodes
    and of the cluster as a whole, each a sentence."""

    python: str
    ray: str
    synergy: str
    source: str
    problems: list[str] = field(default_factory=list)


def source() -> str:
    """Digest of this package's own files and recipes: what a version number does not tell of a checkout."""
    from synergy import paths
    from synergy.driver import identity

    recipes = identity.source_digest(paths.ROOT / "recipes", "*.yaml")
    return identity.sha(identity.source_digest(paths.PACKAGE) + recipes)[:12]


def python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def look(spec: Mapping[str, Any]) -> Found:
    import ray

    import synergy

    versions = (python(), ray.__version__, synergy.__version__, source())
    problems: list[str] = []
    try:
        with _file(spec["folder"], problems) as seen:
            problems += _nodes(ray, list(spec["pythons"]), seen)
    except Exception as error:  # of Ray's, which has many: other versions on the head, a node that does not answer
        problems.append(" ".join(str(error).split())[:500])
    return Found(*versions, problems)


@contextmanager
def _file(folder: str | None, problems: list[str]) -> Iterator[str | None]:
    """A file in the run directory, or in the nearest folder above that is there."""
    if folder is None:
        yield None
        return
    place = Path(folder)
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        handle, name = tempfile.mkstemp(prefix=".synergy-probe-", dir=place)
    except OSError as error:
        problems.append(f"run.dir={folder} can't be written on the head ({error.strerror}: {place})")
        yield None
        return
    os.close(handle)
    try:
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


def _nodes(ray: Any, pythons: list[str], seen: str | None) -> Iterator[str]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

    def missing(files: list[str]) -> list[str]:
        from pathlib import Path

        return [file for file in files if not Path(file).exists()]

    task, wanted = ray.remote(num_cpus=0)(missing), [*pythons, *([seen] if seen else [])]
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=where).remote(wanted)] = (
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            )
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    for ref in done:
        lacking = ray.get(ref)
        if absent := [file for file in lacking if file != seen]:
            yield f"node {asked[ref]} has no {', '.join(absent)}: it lacks the image or folder that the others have"
        if seen in lacking:
            yield f"node {asked[ref]} does not see run.dir ({Path(str(seen)).parent}): the folder must be shared by all nodes"
    for ref in silent:
        yield f"node {asked[ref]} ran no task within {NODE_SECONDS:.0f} s"


if __name__ == "__main__":
    print(MARK + json.dumps(asdict(look(json.loads(sys.argv[1])))), flush=True)

"""``python -m synergy.cluster.probe SPEC``: runs as a short job of a cluster, and tells what a driver would find there.

SPEC: JSON of {"pythons": [interpreters], "folder": the run directory, or null, "words": of the driver's command line}. Prints
one line, ``MARK`` and JSON of :class:`Found`. On every node a task looks whether the interpreters are there, whether it sees a
file that is made in the folder for the purpose, and taken away again, and how much memory the GPUs have; it takes none of them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synergy.errors import UserError

MARK = "SYNERGY-PROBE "
NODE_SECONDS = 90.0
"""A node that runs no task within this time is told as silent."""


@dataclass(frozen=True)
class Found:
    """python, ray, synergy: versions of the driver's interpreter; source: digest of the package. problems: of single nodes
    and of the cluster as a whole, each a sentence. words: what to add to the driver's command line (``gpu_memory``)."""

    python: str
    ray: str
    synergy: str
    source: str
    problems: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


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
    words: list[str] = []
    try:
        with _file(spec["folder"], problems) as seen:
            cards = _nodes(ray, list(spec["pythons"]), seen, problems)
        if spec["words"] and not problems:
            words = _fitting(spec["words"], cards)
    except UserError as error:
        problems.append(str(error))
    except Exception as error:  # of Ray's, which has many: other versions on the head, a node that does not answer
        problems.append(" ".join(str(error).split())[:500])
    return Found(*versions, problems, words)


def _fitting(told: list[str], cards: Mapping[str, Sequence[int]]) -> list[str]:
    """Words about the GPUs' memory, after a look whether the stages fit with them. Raises UserError where they don't.
    told: the driver's command line; cards: bytes of each GPU, by the node's id."""
    from synergy import compose
    from synergy.cluster import gpu_memory, room

    more = gpu_memory.words(compose.tasks(told), gpu_memory.seen(room.nodes(), cards))
    for task in compose.tasks([*told, *more]):
        with task.telling():
            gpu_memory.check(task.cfg)
    return more


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


def _nodes(ray: Any, pythons: list[str], seen: str | None, problems: list[str]) -> dict[str, list[int]]:
    """Bytes of memory of each node's GPUs, by its id; what is not as it should be goes to the problems."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")

    def told(files: list[str]) -> tuple[list[str], list[int]]:
        from pathlib import Path

        missing = [file for file in files if not Path(file).exists()]
        try:
            from synergy import machine
        except ImportError:  # of a node that lacks the folder, which is the thing to tell
            return missing, []
        return missing, [memory for _, memory in machine.cards()]  # all: Ray shows a task without GPUs none

    task, wanted = ray.remote(num_cpus=0)(told), [*pythons, *([seen] if seen else [])]
    asked, ids, cards = {}, {}, {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = task.options(scheduling_strategy=where).remote(wanted)
            asked[ref], ids[ref] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["NodeID"]
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    for ref in done:
        lacking, cards[ids[ref]] = ray.get(ref)
        who = f"node {asked[ref]}"
        if absent := [file for file in lacking if file != seen]:
            problems.append(f"{who} has no {', '.join(absent)}: it lacks the image or folder that the others have")
        if seen in lacking:
            place = Path(str(seen)).parent
            problems.append(f"{who} does not see run.dir ({place}): the folder must be shared by all nodes")
    problems += [f"node {asked[ref]} ran no task within {NODE_SECONDS:.0f} s" for ref in silent]
    return cards


def main() -> None:
    spec = json.loads(sys.argv[1])
    sys.argv[1:] = spec["words"]  # where Hydra looks for words about itself
    print(MARK + json.dumps(asdict(look(spec))), flush=True)


if __name__ == "__main__":
    main()

"""`python warm_ray.py FILE KWARGS`: a local Ray cluster, kept for all RL stages of a driver; its address in FILE.

KWARGS: those of `ray.init`, as JSON. Each verl job starts a cluster of its own otherwise, some seconds of daemons that
import Python's libraries. The jobs attach to this one by their own ray_kwargs (see verl_fork). Ends when its standard
input does, or when one of Ray's own processes has died, and then takes FILE away: the next job starts a cluster of its own.
"""

import json
import select
import sys
from pathlib import Path
from typing import Any

import ray


def main(file: Path, kwargs: dict[str, Any]) -> None:
    """Start the cluster, tell its address, and wait for the end of standard input."""
    context = ray.init(**{"address": "local", **kwargs}, log_to_driver=False)  # not a cluster that happens to run here
    aside = file.with_suffix(".new")
    aside.write_text(context.address_info["gcs_address"])
    aside.rename(file)  # whoever sees the file sees all of it
    node = ray._private.worker._global_node  # ray 2.60; a driver by itself outlives its raylet
    while not select.select([sys.stdin], [], [], 1.0)[0] and not node.dead_processes():
        pass
    file.unlink(missing_ok=True)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

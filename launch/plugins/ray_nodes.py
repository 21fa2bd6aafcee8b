"""`python ray_nodes.py --nodes=N --gpus=G … -- COMMAND`: runs a command on N nodes of a Ray cluster, each with G of its GPUs.

Waits until the nodes are free (a placement group), starts the command once on each, tells its output as if it ran here, and
ends with its exit code; on several nodes the first that fails ends the others. There they find NNODES, NODE_RANK, MASTER_ADDR
and MASTER_PORT, by which LLaMA-Factory's launcher starts torchrun. Ended here, by a signal or any other way, the command is
ended there: the actor that holds it goes with its job, and the command with the actor (`--guard`). Measured with ray 2.60.0.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GRACE_SECONDS = 5.0
WAIT_SECONDS = 60.0
"""Between two words of a command that waits for nodes."""
MARK = "SYNERGY_STAGE"
_PR_SET_CHILD_SUBREAPER = 36


class Place:
    """An actor on one node, with the GPUs that Ray gives it."""

    def address(self) -> tuple[str, int]:
        import ray

        from synergy.machine import hold_port

        self.held = hold_port(None)  # torchrun takes it when it is up
        return ray.util.get_node_ip_address(), int(self.held.getsockname()[1])

    def run(self, argv: Sequence[str], env: Mapping[str, str], cwd: str, program: str) -> Iterator[bytes | int]:
        """The command's output in pieces, then its exit code."""
        from synergy.machine import die_with_parent

        if "MASTER_ADDR" in env:
            import gloo_interface  # noqa: F401 - the command inherits its variable

        mine = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # Ray's, by num_cpus
        self.child = subprocess.Popen(
            [sys.executable, program, "--guard", *argv],
            env={**mine, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        assert self.child.stdout is not None
        while piece := os.read(self.child.stdout.fileno(), 65536):
            yield piece
        yield self.child.wait()

    def stop(self) -> None:
        child = getattr(self, "child", None)
        if child is not None and child.poll() is None:
            child.terminate()
            child.wait(timeout=2 * GRACE_SECONDS)


def guard(argv: Sequence[str]) -> int:
    """Runs the command and leaves nothing of it, whichever way this process ends but SIGKILL."""
    import psutil

    from synergy.driver import process
    from synergy.machine import die_with_parent

    def below(found: psutil.Process) -> bool:
        try:
            return os.getpid() in {one.pid for one in found.parents()}
        except psutil.Error:
            return False

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whose parents end comes here, not to init
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mark = os.environ[MARK]
    child = None
    try:
        child = subprocess.Popen(argv, start_new_session=True, preexec_fn=die_with_parent)
        code = child.wait()
        return code if code >= 0 else 128 - code
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.end(filter(below, process.marked(mark)), [], GRACE_SECONDS)
        if child is not None:
            child.wait()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("nodes", int), ("gpus", int), ("cpus", float), ("memory", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--env", action="append", default=[], help="variable of this process that the command gets")
    cut = list(words).index("--")
    given, argv = parser.parse_args(words[:cut]), list(words[cut + 1 :])

    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    names = ("PYTHONPATH",)
    ray.init(
        address="auto",
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {name: os.environ[name] for name in names if name in os.environ}},
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bundle = {"GPU": given.gpus, "CPU": given.cpus, "memory": given.memory}
    bundle = {name: size for name, size in bundle.items() if size} or {"CPU": 0.001}
    actors: list[Any] = []
    try:
        spread = given.nodes > 1
        group = placement_group(
            [bundle] * given.nodes,
            strategy="STRICT_SPREAD" if spread else "STRICT_PACK",
            _soft_target_node_id=None if spread else _fullest(bundle),
        )
        ready = group.ready()
        while not ray.wait([ready], timeout=WAIT_SECONDS)[0]:
            print(f"ray_nodes: waits for {given.nodes} x {bundle}, which other work of the cluster holds", flush=True)
        ray.get(ready)
        for index in range(given.nodes):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            made = ray.remote(Place).options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=given.gpus,
                memory=given.memory or None,
                max_concurrency=2,
                scheduling_strategy=where,
            )
            actors.append(made.remote())
        env = {name: os.environ[name] for name in given.env} | {MARK: os.environ.get(MARK, f"ray-nodes-{os.getpid()}")}
        return _run(ray, actors, argv, env)
    except ray.exceptions.RayError as error:
        return _lost(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    finally:
        _end(ray, actors)


def _fullest(bundle: Mapping[str, float]) -> str | None:
    """Id of the node with the least free that holds it, so that the others stay whole for stages that want all of one. Ray by
    itself takes the emptiest (its LeastResourceScorer)."""
    from ray._private.state import available_resources_per_node

    nodes: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    hold = [node for node, free in nodes.items() if all(free.get(name, 0) >= size for name, size in bundle.items())]
    return min(hold, key=lambda node: (nodes[node].get("GPU", 0), nodes[node].get("CPU", 0)), default=None)


def _run(ray: Any, actors: Sequence[Any], argv: Sequence[str], env: Mapping[str, str]) -> int:
    host, port = ray.get(actors[0].address.remote()) if len(actors) > 1 else ("", 0)
    codes: list[int | None] = [None] * len(actors)
    changed = threading.Event()

    def follow(rank: int, actor: Any) -> None:
        more = {"NNODES": str(len(actors)), "NODE_RANK": str(rank), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        call = actor.run.options(num_returns="streaming")
        try:
            for ref in call.remote(argv, {**env, **(more if host else {})}, os.getcwd(), os.path.abspath(__file__)):
                piece = ray.get(ref)
                if isinstance(piece, int):
                    codes[rank] = piece
                else:
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
        except ray.exceptions.RayError as error:
            codes[rank] = _lost(error)
        changed.set()

    for rank, actor in enumerate(actors):
        threading.Thread(target=follow, args=(rank, actor), daemon=True).start()
    while None in codes and not any(codes):
        changed.wait(1.0)
        changed.clear()
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _lost(error: Exception) -> int:
    from ray.exceptions import RayTaskError

    told = "failed there" if isinstance(error, RayTaskError) else "NodeDiedError: a node or its worker was lost"
    print(f"ray_nodes: {told}: {' '.join(str(error).split())[-500:]}", flush=True)
    return 1


def _end(ray: Any, actors: Sequence[Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(Exception):  # whatever is gone needs no end; the rest goes with this job
        ray.get([actor.stop.remote() for actor in actors], timeout=2 * GRACE_SECONDS)
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[2:]) if sys.argv[1:2] == ["--guard"] else main(sys.argv[1:]))

"""A real Ray cluster on this machine: several raylets, in a process of its own that is told by lines what to do.

Run as a program it is that process: it starts the head, prints its addresses as JSON, and then obeys ``add GPUS CPUS``,
``kill NODE`` (SIGKILL to all processes of that worker node), ``behead`` (to those of the head), ``head`` (a new one at the same
addresses) and the end of its input.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from synergy import environments, paths
from synergy.driver import process

SIZES = {"object_store_memory": 150 * 1024 * 1024, "node_ip_address": "127.0.0.1"}
ENV = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""No idle workers; a lost node is noticed within seconds; all servers on loopback (Ray's word for it: one host)."""


@dataclass(frozen=True)
class Local:
    """address: the dashboard's; gcs: of ray.init; nodes: ids of the worker nodes."""

    address: str
    gcs: str
    child: subprocess.Popen[str]
    mark: str = ""
    nodes: list[str] = field(default_factory=list)

    def tell(self, words: str) -> str:
        assert self.child.stdin is not None
        self.child.stdin.write(words + "\n")
        self.child.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, "the cluster's process is gone"
        return line.strip()

    def add(self, gpus: int = 1, cpus: int = 8) -> str:
        """Starts a worker node; its id."""
        self.nodes.append(self.tell(f"add {gpus} {cpus}"))
        return self.nodes[-1]

    def kill(self, node: str) -> None:
        """SIGKILL to all of a node's processes."""
        self.tell(f"kill {node}")
        self.nodes.remove(node)

    def behead(self) -> None:
        """SIGKILL to the head's own processes of Ray. What they started, such as a job's driver, is left to end by itself."""
        self.tell("behead")

    def head(self) -> None:
        """Starts a head again, with the ports of the one that was killed."""
        self.tell("head")

    def lose(self) -> None:
        """SIGKILL to the head, all nodes and all that runs there, jobs and their drivers too."""
        for one in process.family(self.mark):
            with suppress(psutil.Error):
                one.kill()


@contextmanager
def local(*workers: int, env: Mapping[str, str] | None = None, cpus: int = 4) -> Iterator[Local]:
    """A head without GPUs and a worker node for each number, with as many (virtual) GPUs."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as a socket's path must be
    mark = f"test-{Path(folder).name}"
    full = {**os.environ, **ENV, **(env or {}), "PYTHONPATH": paths.pythonpath(), process.MARK: mark}
    argv = [str(environments.locate("verl")), __file__, folder, str(cpus)]
    child = subprocess.Popen(
        argv, env=full, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        made = Local("", "", child)
        told = json.loads(made._answer())
        made = Local(f"http://{told['dashboard']}", told["gcs"], child, mark)
        for gpus in workers:
            made.add(gpus)
        yield made
    finally:
        if child.stdin is not None:
            with suppress(BrokenPipeError):
                child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
        process.reap(mark, grace=2.0)
        child.kill()
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: str, cpus: int) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from synergy.machine import hold_port

    told, sys.stdout = sys.stdout, sys.stderr
    # Ray's own choice for the agent is one fixed port, which another cluster may have.
    held = [hold_port(None), hold_port(None)]
    port, agent = (one.getsockname()[1] for one in held)
    head: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 0, "include_dashboard": True, "dashboard_port": port}
    head |= {"dashboard_agent_listen_port": agent, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args={**head, **SIZES})
    head["gcs_server_port"] = int(cluster.address.rpartition(":")[2])  # of a head that takes its place
    # Jobs look here for their cluster; without it Ray gives them any that it finds on this host.
    ray._private.utils.write_ray_address(cluster.address, folder)
    nodes: dict[str, Any] = {}
    print(json.dumps({"dashboard": cluster.webui_url, "gcs": cluster.address}), file=told, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        answer = "done"
        if word == "add":
            made = cluster.add_node(num_cpus=int(rest[1]), num_gpus=int(rest[0]), **SIZES)
            nodes[made.node_id] = made
            answer = str(made.node_id)
        elif word == "kill":
            cluster.remove_node(nodes.pop(rest[0]), allow_graceful=False)
        elif word == "behead":
            cluster.remove_node(cluster.head_node, allow_graceful=False)
        else:
            cluster.add_node(**head, **SIZES)
        print(answer, file=told, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))

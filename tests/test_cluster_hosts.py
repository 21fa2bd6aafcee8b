"""A Ray cluster of hosts of their own (`hosts.py`), started by `ray start` and used from a third: SFT and RL over both, and
what `synergy submit` refuses there. LLaMA-Factory, verl and vLLM run on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hosts import Host, hosts
from test_cluster_jobs import TOKEN
from test_end_to_end import SMALL, entries

from synergy import environments, paths
from synergy.driver import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.usefixtures("namespaces")]

NODE = {"RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0", **TOKEN}
SIZES = ("--num-gpus=1", "--num-cpus=10", "--object-store-memory=150000000")
WORDS = [
    *SMALL,
    "cluster.nodes=2",
    "data.sizes={train: 32, val: 4, bench: 4}",
    "sft.config.num_train_epochs=1",
    "sft.config.per_device_train_batch_size=8",
    "sft.batch=16",
    "~sft.config.gradient_accumulation_steps",
    "budget.rl_steps=2",
    "run.verify=false",  # its forward passes have tests of their own (test_forward.py)
    "cluster.late=true",  # no node has two GPUs yet: evaluations wait, which are not the question
    "+cluster.stages.evaluate.gpus=2",
]
TRAINERS = {"synergy_llamafactory.py", "ray::WorkerDict"}


@dataclass(frozen=True)
class Cluster:
    """desk: a host that is none of the cluster's nodes. folder: seen by all three."""

    head: Host
    worker: Host
    desk: Host
    folder: Path

    @property
    def address(self) -> str:
        return f"http://{self.head.address}:8265"

    def synergy(self, verb: str, *words: str) -> list[str]:
        """A command line that asks the cluster from the desk."""
        return self.desk.words(sys.executable, "-m", f"synergy.{verb}", *words, cwd=paths.ROOT)

    def job(self, *words: str) -> str:
        argv = self.synergy("job", *words, "--address", self.address)
        return subprocess.run(argv, env={**os.environ, **TOKEN}, capture_output=True, text=True, check=True).stdout

    def submit(self, told: Path, *words: str) -> subprocess.Popen[bytes]:
        argv = self.synergy("submit", "cluster=ray", f"cluster.address={self.address}", *words)
        with told.open("w") as file:
            return subprocess.Popen(argv, env={**os.environ, **TOKEN}, stdout=file, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("shared")
    ray = environments.locate("verl").with_name("ray")
    with hosts("head", "worker", "desk", shared=[paths.ROOT, paths.ENVS, folder]) as (head, worker, desk):
        to = {
            head: ("--head", "--port=6379", f"--dashboard-host={head.address}"),
            worker: (f"--address={head.address}:6379",),
        }
        for node, words in to.items():
            done = node.run(ray, "start", *words, f"--node-ip-address={node.address}", *SIZES, **NODE)
            assert done.returncode == 0, done.stdout + done.stderr
        yield Cluster(head, worker, desk, folder)


def refused(cluster: Cluster, *words: str) -> str:
    """What submit says that queues nothing."""
    told = cluster.folder / "told.txt"
    assert cluster.submit(told, "recipe=sft", *words).wait() == 2, told.read_text()
    assert "synergy-sft" not in cluster.job("list")
    assert not [one for host in (cluster.head, cluster.worker) for one in at_work(host)]
    return told.read_text()


def at_work(host: Host) -> list[list[str]]:
    """Commands of drivers and stages there."""
    found = []
    for one in host.processes():
        with suppress(psutil.Error):
            if process.MARK in one.environ() or "synergy.run" in one.cmdline():
                found.append(one.cmdline())
    return found


def test_a_host_that_does_not_see_the_run_directory_is_named(cluster: Cluster) -> None:
    there = cluster.folder / "runs"
    there.mkdir()
    named = f"node worker ({cluster.worker.address}) does not see run.dir"
    with cluster.worker.hidden(there):  # the share is not mounted there
        assert f"{named} ({there}): the folder must be shared" in refused(cluster, f"run.dir={there}/one")
    assert f"{named} (/tmp)" in refused(cluster, "run.dir=/tmp/runs")  # each host has its own
    assert not list(there.iterdir()) and not list(cluster.head.sees("/tmp").glob(".synergy*")), (
        "the probe's file is gone"
    )


def test_a_host_without_the_environment_is_named(cluster: Cluster) -> None:
    image = cluster.folder / "image"
    image.mkdir()
    (image / "eval").symlink_to(environments.locate("vlmevalkit").parent.parent)
    python = image / "eval/bin/python"
    with cluster.worker.hidden(image):
        told = refused(cluster, f"frameworks.vlmevalkit={python}", f"run.dir={cluster.folder}/none")
    assert (
        f"node worker ({cluster.worker.address}) has no {python}: it lacks the image" in told
        and "node head" not in told
    )


def test_gloo_takes_the_interface_of_rays_address_unless_it_is_told(cluster: Cluster) -> None:
    """By itself it listens on 127.0.1.1 there, and the test below fails after minutes."""
    code = "import gloo_interface as g, os; print(os.environ['GLOO_SOCKET_IFNAME'], g.interface('192.0.2.1'))"
    argv, env = (environments.locate("verl"), "-c", code), {"PYTHONPATH": paths.pythonpath()}
    assert cluster.worker.run("getent", "hosts", "worker").stdout.split() == ["127.0.1.1", "worker"]
    assert cluster.worker.run(*argv, **env).stdout.split() == ["eth0", "None"]
    assert cluster.worker.run(*argv, **env, GLOO_SOCKET_IFNAME="ib0").stdout.split() == ["ib0", "None"]


def meeting(host: Host, other: Host) -> set[str]:
    """Which of the trainers there hold a connection to the other host."""
    found = set()
    for pid in re.findall(r"pid=(\d+)", host.run("ss", "-Htnp", "state", "established", "dst", other.address).stdout):
        with suppress(OSError):
            command = host.sees(f"/proc/{pid}/cmdline").read_text()
            found |= {name for name in TRAINERS if name in command}
    return found


def test_sft_and_rl_train_over_both_hosts(cluster: Cluster) -> None:
    root, told = cluster.folder / "run", cluster.folder / "told.txt"
    ends = [(cluster.head, cluster.worker), (cluster.worker, cluster.head)]
    met: list[set[str]] = [set(), set()]
    child = cluster.submit(told, "recipe=two_stage", f"run.dir={root}", *WORDS)
    try:
        while "two_stage" not in (made := entries(root)):
            assert child.poll() is None, told.read_text()
            for seen, (host, other) in zip(met, ends, strict=True):
                seen |= meeting(host, other)
            time.sleep(1.0)
        stop = re.search(r"synergy job stop (\S+)", told.read_text())
        assert stop and "STOPPED" in cluster.job("stop", stop[1])
        assert child.wait(60) == 130, told.read_text()
    finally:
        child.kill()
    assert met == [TRAINERS, TRAINERS]
    assert made["sft"].figures["steps"] == made["two_stage"].figures["steps"] == 2
    until(lambda: not at_work(cluster.head) and not at_work(cluster.worker))


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)

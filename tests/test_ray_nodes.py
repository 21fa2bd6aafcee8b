"""`ray_nodes.py`: a command on nodes of a real Ray cluster; and its guard, which leaves nothing of the command there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_cluster

from synergy import environments, paths
from synergy.driver import failure, process

PROGRAM = str(paths.ROOT / "launch" / "plugins" / "ray_nodes.py")
ENV = {**os.environ, "PYTHONPATH": paths.pythonpath()}


def guarded(*argv: str) -> subprocess.Popen[str]:
    env = {**ENV, process.MARK: f"guard-{os.getpid()}"}
    return subprocess.Popen([sys.executable, PROGRAM, "--guard", *argv], env=env, stdout=subprocess.PIPE, text=True)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_a_command_leaves_behind_ends_with_it() -> None:
    child = guarded("sh", "-c", "sleep 300 >/dev/null & echo $!")
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    assert child.wait(60) == 0 and gone(pid)


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -9 $$", 128 + signal.SIGKILL)])
def test_a_guard_has_its_command_s_exit_code(end: str, code: int) -> None:
    assert guarded("sh", "-c", end).wait(60) == code


def test_a_guard_that_is_told_to_end_ends_its_command() -> None:
    child = guarded("sh", "-c", "echo $$; sleep 300")
    assert child.stdout is not None
    pid = int(child.stdout.readline())
    child.terminate()
    assert child.wait(60) == 128 + signal.SIGTERM and gone(pid)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_cluster.Local]:
    with ray_cluster.local(2, 2) as made:
        yield made


def start(
    cluster: ray_cluster.Local,
    *argv: str,
    gpus: int = 1,
    nodes: int = 1,
    wait: float = 60.0,
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    words = [f"--gpus={gpus}", f"--nodes={nodes}", "--cpus=1", "--memory=0", "--", *argv]
    code = f"import sys, ray_nodes; ray_nodes.WAIT_SECONDS = {wait}; sys.exit(ray_nodes.main(sys.argv[1:]))"
    env = {**ENV, **ray_cluster.ENV, "RAY_ADDRESS": cluster.gcs}
    env["PYTHONPATH"] = f"{Path(PROGRAM).parent}:{env['PYTHONPATH']}"
    return subprocess.Popen(
        [str(environments.locate("verl")), "-c", code, *words],
        env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_small_commands_share_a_node_and_one_that_finds_none_says_so(cluster: ray_cluster.Local) -> None:
    """Ray by itself gives the second one the other node, and so the third none with two GPUs."""
    running = []
    try:
        nodes = []
        for _ in range(2):
            running.append(start(cluster, "sh", "-c", "echo $RAY_RAYLET_PID; sleep 300"))
            out = running[-1].stdout
            assert out is not None
            nodes.append(out.readline())
        assert nodes[0] == nodes[1] and int(nodes[0])
        whole = start(cluster, "sh", "-c", "echo $RAY_RAYLET_PID", gpus=2)
        assert whole.stdout is not None and whole.stdout.readline() not in nodes and whole.wait(60) == 0
        running.append(start(cluster, "sh", "-c", "echo placed; sleep 300", gpus=2))
        out = running[-1].stdout
        assert out is not None and out.readline() == "placed\n"
        running.append(start(cluster, "true", gpus=2, wait=0.5))
        out = running[-1].stdout
        assert out is not None and "waits for 1 x {'GPU': 2" in out.readline()
    finally:
        for child in running:
            child.terminate()
            child.wait()


@pytest.mark.slow
def test_a_command_that_can_not_start_there_is_no_lost_node(cluster: ray_cluster.Local, tmp_path: Path) -> None:
    told = start(cluster, "/no/such/program").communicate(timeout=180)[0]
    assert "No such file or directory" in told and "NodeDiedError" not in told
    folder = tmp_path / "here"
    folder.mkdir()
    child = start(cluster, "true", cwd=folder)
    folder.rmdir()  # a node that has not this folder
    told = child.communicate(timeout=180)[0]
    assert child.returncode == 1 and "NodeDiedError" not in told, told


@pytest.mark.slow
def test_each_of_two_nodes_has_its_rank_and_all_the_same_master(cluster: ray_cluster.Local) -> None:
    """What LLaMA-Factory's launcher reads, and names for torchrun."""
    told = "echo $NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $RAY_RAYLET_PID"
    child = start(cluster, "sh", "-c", told, nodes=2)
    rows = sorted(line.split() for line in child.communicate(timeout=180)[0].splitlines())
    assert child.returncode == 0, rows
    assert [row[:3] for row in rows] == [["2", "0", "127.0.0.1"], ["2", "1", "127.0.0.1"]]
    assert len({row[3] for row in rows}) == 1 and int(rows[0][3]), "one port"
    assert len({row[4] for row in rows}) == 2, "two raylets"


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_other_and_has_the_exit_code(cluster: ray_cluster.Local, tmp_path: Path) -> None:
    first = tmp_path / "pid"
    other = f"until test -s {first}; do sleep 0.1; done; exit 7"
    child = start(
        cluster, "sh", "-c", f"if test $NODE_RANK = 0; then echo $$ >{first}; exec sleep 300; fi; {other}", nodes=2
    )
    told = child.communicate(timeout=180)[0]
    assert child.returncode == 7, told
    assert gone(int(first.read_text()))


@pytest.mark.slow
def test_a_node_killed_under_a_command_is_told_as_a_lost_one(cluster: ray_cluster.Local, tmp_path: Path) -> None:
    """As SFT, sampling and evaluation see it: by what ray_nodes says, the driver knows that another attempt may go well."""
    node = cluster.add(gpus=3)  # the others have two
    child = start(cluster, "sh", "-c", "echo placed; sleep 300", gpus=3)
    assert child.stdout is not None and child.stdout.readline() == "placed\n"
    cluster.kill(node)
    log = tmp_path / "log.txt"
    log.write_text(child.communicate(timeout=180)[0])
    assert child.returncode == 1 and "Traceback" not in log.read_text(), log.read_text()
    assert failure.cause(log) == failure.Cause("machine", "a Ray node was lost", passing=True)

"""The hosts that tests make in namespaces (`hosts.py`): apart from each other, and gone with the test, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hosts import BOOT, hosts

from synergy import paths

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("namespaces")]


def test_hosts_reach_each_other_and_share_only_what_is_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared")
    with hosts("one", "two", shared=[tmp_path]) as (one, two):
        assert [host.run("hostname").stdout for host in (one, two)] == ["one\n", "two\n"]
        assert len({host.run("cat", BOOT).stdout for host in (one, two)} | {Path(BOOT).read_text()}) == 3
        listening = subprocess.Popen(two.words("python3", "-m", "http.server", "80", f"--bind={two.address}"))
        reached = "for _ in {1..100}; do (exec 3<>/dev/tcp/two/80) 2>&- && exit; sleep 0.1; done; exit 1"
        assert one.run("bash", "-c", reached).returncode == 0
        assert [one.pid for one in two.processes()] == [psutil.Process(listening.pid).children()[0].pid]
        assert not one.processes()
        for folder in ("/tmp", "/dev/shm"):
            one.sees(folder).joinpath("own").touch()
            assert not two.sees(folder).joinpath("own").exists() and not Path(folder, "own").exists()
        shared = tmp_path / "file"
        assert one.sees(shared).read_text() == two.sees(shared).read_text() == "shared"
        with two.hidden(tmp_path):
            assert one.sees(shared).exists() and not two.sees(shared).exists()
        assert two.sees(shared).exists()
    assert listening.wait(10) != 0


HOLD = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from hosts import hosts
with hosts("one", "two", shared=[]) as made:
    for host in made:
        subprocess.Popen(host.words("setsid", "sleep", "300"))
    while not all(host.processes() for host in made):
        time.sleep(0.05)
    print(*[host.init for host in made], *[one.pid for host in made for one in host.processes()], flush=True)
    time.sleep(300)
"""


def test_a_killed_test_leaves_nothing_of_its_hosts() -> None:
    env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(__file__).parent)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    there = [psutil.Process(int(word)) for word in child.stdout.readline().split()]
    assert len(there) >= 4 and all(one.is_running() for one in there)
    child.kill()
    child.wait()
    assert not psutil.wait_procs(there, timeout=20)[1]

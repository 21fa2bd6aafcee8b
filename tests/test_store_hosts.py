"""Hosts that share no run directory (`hosts.py`) but a store on a third, a real S3 server: one is lost in mid-recipe with all
that it had, the other goes on. The real frameworks, tiny."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import Host, hosts
from s3_server import BUCKET, Server, serving
from test_end_to_end import SMALL, entries

from synergy import paths
from synergy.driver import identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("namespaces")]

RUNS = Path("/tmp/runs")
"""Each host has its own."""
WORDS = [
    "recipe=sft",
    *SMALL,
    "data.sizes={train: 32, val: 4, bench: 4}",
    "evaluate.runs=1",
    "sft.config.num_train_epochs=1",
    "run.verify=false",  # its forward passes have tests of their own (test_forward.py)
    "run.warm=false",
    f"run.dir={RUNS}",
    f"run.store=s3://{BUCKET}/team",
]


def start(host: Host, server: Server) -> subprocess.Popen[str]:
    argv = host.words(sys.executable, "-m", "synergy.run", *WORDS, cwd=paths.ROOT)
    env = {**os.environ, **server.env}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(host: Host, server: Server) -> tuple[str, int]:
    """What the driver says to its end there, and the bytes that came by the host's cable meanwhile."""
    before, child = received(host), start(host, server)
    told = child.communicate()[0]
    assert child.returncode == 0, told
    return told, received(host) - before


def received(host: Host) -> int:
    return int(re.findall(r"eth0: *(\d+)", host.run("cat", "/proc/net/dev").stdout)[0])


def stored(server: Server) -> dict[str, str]:
    """Name -> digest of the stages that are in the store."""
    files = (server.data / BUCKET / "team/entries").glob("*/*.json")
    return {told["name"]: told["digest"] for told in (json.loads(file.read_text())["entry"] for file in files)}


def test_a_host_goes_on_where_another_was_lost_with_all_that_it_had(tmp_path: Path) -> None:
    with (
        hosts("one", "two", "s3", shared=[paths.ROOT, paths.ENVS, tmp_path]) as (one, two, third),
        serving(tmp_path / "s3", host=third) as server,
    ):
        first = start(one, server)
        while "sft" not in (there := stored(server)):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
        os.kill(one.init, signal.SIGKILL)  # and the kernel all else that runs there
        first.communicate()
        size = sum(file.stat().st_size for file in (server.data / BUCKET / "team/stages").rglob("*") if file.is_file())
        told, came = run(two, server)
        made = entries(two.sees(RUNS))
        assert {name: made[name].digest for name in there} == there
        assert all(identity.digest(two.sees(RUNS / entry.output)) == entry.digest for entry in made.values())
        assert set(re.findall(r" (\S+): fetched .* as published", told)) == set(there)
        assert set(re.findall(r" (\S+): done in", told)) == set(made) - set(there) >= {"eval-sft"}
        assert size < came < 1.5 * size, "each file once"
        told, came = run(two, server)
        assert not re.search(r": (done in|fetched) ", told) and came < size / 10

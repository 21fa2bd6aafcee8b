"""What listens, listens on loopback: our vLLM server by its command line, Ray and what verl starts by Ray's own setting."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml

from synergy import paths
from synergy.machine import HOST
from synergy.workers import vllm_server
from synergy.workers.vllm_server import ServerConfig

WORDS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def test_our_vllm_server_is_told_loopback_and_gets_a_key_of_its_own_by_the_environment() -> None:
    one, two = (ServerConfig(Path("/m"), "m", Path("/l")) for _ in range(2))
    argv = vllm_server.command(one, 1234)
    assert HOST == "127.0.0.1" and argv[argv.index("--host") + 1] == HOST
    assert one.key != two.key and len(one.key) >= 32
    assert one.key not in " ".join(argv) and one.key not in repr(one), "an argument could be read by anyone"


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_ray_is_told_that_it_is_alone_and_asks_for_a_token(scale: str) -> None:
    env = yaml.safe_load((paths.ROOT / f"recipes/rl/{scale}.yaml").read_text())["env"]
    assert env[WORDS] == "0" and env["RAY_AUTH_MODE"] == "token"


CLUSTER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import ray
sizes = {"num_cpus": 1, "object_store_memory": 80_000_000}
context = ray.init(**sizes, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])

@ray.remote
def address():
    return ray.util.get_node_ip_address()

print("ip", ray.get(address.remote()), flush=True)
sys.stdin.read()
"""


def test_ray_and_what_asks_it_for_its_address_listen_on_loopback(tmp_path: Path) -> None:
    """verl's vLLM servers and TransferQueue bind to ``ray.util.get_node_ip_address()``."""
    pytest.importorskip("ray")

    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        env = {**os.environ, WORDS: "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        child = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(paths.ROOT), short],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert child.stdout is not None
            told = next(line for line in child.stdout if line.startswith("ip"))
            assert told.split() == ["ip", HOST]
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
            listening = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"}
            assert listening and listening <= {HOST, f"::ffff:{HOST}", "::1"}, listening
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(timeout=60)

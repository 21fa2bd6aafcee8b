"""What listens, listens on loopback: our vLLM server by its command line, Ray and what verl starts by Ray's own setting."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from synergy import lab, paths
from synergy.machine import HOST, hold_port
from synergy.stages import sft_spread
from synergy.workers import vllm_server
from synergy.workers.vllm_server import ServerConfig

WORDS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def test_our_vllm_server_is_told_loopback_and_gets_a_key_of_its_own_by_the_environment() -> None:
    one, two = (ServerConfig(Path("/m"), "m", Path("/l")) for _ in range(2))
    argv = vllm_server.command(one, 1234)
    assert argv[argv.index("--worker-extension-cls") + 1] == "loopback_store.Extension"
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
            child.wait(timeout=180)


STORE = """
import os, psutil, socket, sys
import torch.distributed as dist
if sys.argv[1:]:
    sys.path.insert(0, sys.argv[1])
    import loopback_store
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", GLOO_SOCKET_IFNAME="lo")
dist.init_process_group("gloo")
print(*[c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port])
"""


@pytest.mark.parametrize("libuv", ["0", "1"])
def test_torchs_store_listens_on_its_address_only(libuv: str) -> None:
    pytest.importorskip("torch")

    def listening(*words: str) -> str:
        env = {**os.environ, "USE_LIBUV": libuv}
        argv = [sys.executable, "-c", STORE, *words]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert listening(str(paths.ROOT / "launch/plugins")) == HOST
    assert listening() in ("::", "0.0.0.0"), "torch does it itself: drop launch/plugins/loopback_store.py"


TORCHRUN = """
import psutil
import torch.distributed as dist
dist.init_process_group("gloo")
agent = psutil.Process().parent()
dist.barrier()
if dist.get_rank() == 0:
    print("listens", *{c.laddr.ip for c in agent.net_connections("tcp") if c.status == "LISTEN"}, flush=True)
dist.barrier()
"""


def test_torchruns_store_listens_on_loopback_only(tmp_path: Path) -> None:
    """With the words that LLaMA-Factory's launcher starts it with (launcher.py, version 0.9.5)."""
    pytest.importorskip("torch")
    (tmp_path / "worker.py").write_text(TORCHRUN)

    def listening(port: int, **more: str) -> str:
        words = f"--nnodes 1 --node_rank 0 --nproc_per_node 2 --master_addr {HOST} --master_port {port}"
        env = {
            **os.environ,
            "PYTHONPATH": paths.pythonpath(),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        argv = [sys.executable, "-m", "torch.distributed.run", *words.split(), str(tmp_path / "worker.py")]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split("listens ", 1)[1].strip()

    with hold_port(None) as held:
        port = held.getsockname()[1]
        assert listening(port, **sft_spread.ON_LOOPBACK) == HOST
        assert listening(port) in ("::", "0.0.0.0"), "torchrun does it itself: drop launch/plugins/torchrun_loopback.py"


def test_our_vllm_server_listens_on_loopback_with_all_of_its_processes(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    recipe = yaml.safe_load((paths.ROOT / "recipes/evaluate/tiny.yaml").read_text())
    config = ServerConfig(lab.BASE, "m", tmp_path / "log", recipe["server"], recipe["env"])
    with vllm_server.serve(config) as server:
        while not server.ready():
            server.check()
            time.sleep(0.2)
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        listening = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"}
    assert len(family) > 1 and listening == {HOST}, listening


KEY = """
import os, sys
from argparse import Namespace
sys.path.insert(0, sys.argv[1])
import verl_servers
from fastapi.testclient import TestClient
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
client = TestClient(build_app(args, supported_tasks=()), raise_server_exceptions=False)
key = os.environ["VLLM_API_KEY"]
headers = [{}, *({"Authorization": f"Bearer {word}"} for word in ("x", key))]
told = [client.get("/v1/models", headers=one).status_code for one in headers]
print(len(key), *told)
"""


def test_verls_vllm_server_has_a_random_key(warm_python: str) -> None:
    """vLLM's own app, as verl builds it; behind the key there is no engine here, so that the right one meets an error."""
    pytest.importorskip("vllm")
    env = {**os.environ, "PYTHONPATH": paths.pythonpath(), "OMP_NUM_THREADS": "1"}
    env.pop("VLLM_API_KEY", None)
    argv = [warm_python, "-c", KEY, str(paths.ROOT / "launch/plugins")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    length, without, wrong, right = map(int, done.stdout.split()[-4:])
    assert length >= 32 and without == wrong == 401 and right != 401


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_verl_loads_what_closes_its_servers(scale: str) -> None:
    env = yaml.safe_load((paths.ROOT / f"recipes/rl/{scale}.yaml").read_text())["env"]
    assert "verl_servers" in env["VERL_USE_EXTERNAL_MODULES"].split(",")

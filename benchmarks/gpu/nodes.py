"""chain.py as a job of a Ray cluster whose nodes are this host's GPUs, one each: what needs no other stage runs side by side.

    python benchmarks/gpu/nodes.py WORK RANKS NODES [chain.py's words ...]       # NODES: how many GPUs, each a node

The nodes share this host's memory, disk and loopback; to Ray, verl, torchrun and NCCL's rendezvous they are hosts of one GPU.
Words for SFT or RL over all of them: `cluster.nodes=NODES`; for both at once on one each: `recipe=model_merging`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from synergy.machine import choose_ports

HERE = Path(__file__).resolve().parent
RAY = (
    sys.executable,
    "-m",
    "ray.scripts.scripts",
    "start",
    "--block",
    "--disable-usage-stats",
    "--node-ip-address=127.0.0.1",
)
PATIENCE = 120.0
"""Seconds for the cluster to answer."""


@contextmanager
def node(*words: str, **env: str) -> Iterator[None]:
    """`ray start` until the end of the block."""
    child = subprocess.Popen([*RAY, *words], env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(30)


@contextmanager
def cluster(gpus: list[str]) -> Iterator[str]:
    """A head without GPUs, and a node for each; the dashboard's address."""
    port, dashboard, agent = choose_ports(None, 3)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, ExitStack() as nodes:
        head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
        nodes.enter_context(node(*head, "--num-gpus=0", f"--temp-dir={folder}"))
        _wait(f"http://127.0.0.1:{dashboard}/api/version")
        for gpu in gpus:
            nodes.enter_context(node(f"--address=127.0.0.1:{port}", "--num-gpus=1", CUDA_VISIBLE_DEVICES=gpu))
        yield f"http://127.0.0.1:{dashboard}"


def _wait(url: str) -> None:
    end, direct = time.monotonic() + PATIENCE, urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def main(argv: list[str]) -> int:
    if len(argv) < 3:
        raise SystemExit(__doc__)
    work, ranks, count, *words = argv
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(number) for number in range(int(count))]
    with cluster(gpus[: int(count)]) as address:
        return subprocess.run(
            [sys.executable, str(HERE / "chain.py"), work, ranks, f"address={address}", *words], check=False
        ).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

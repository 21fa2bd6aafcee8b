"""chain.py as a job of a Ray cluster whose nodes are this host's GPUs, one each: what needs no other stage runs side by side.

    python benchmarks/gpu/nodes.py WORK RANKS NODES [chain.py's words ...]       # NODES: how many GPUs, each a node

To Ray, verl, torchrun and NCCL's rendezvous they are hosts of one GPU; they share this host's memory, disk and loopback. The
cluster asks for a token, as Ray's do by default. Words for SFT or RL over all of them: `nodes=NODES`; for both at once
on one each: `recipe=model_merging`.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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
"""Seconds for a node to join."""
JOINED = "Ray runtime started"


@contextmanager
def node(log: Path, *words: str, **env: str) -> Iterator[None]:
    """`ray start` until the end of the block, which begins when the node has joined."""
    with log.open("wb") as file:
        child = subprocess.Popen([*RAY, *words], env={**os.environ, **env}, stdout=file, stderr=file)
    end = time.monotonic() + PATIENCE
    try:
        while JOINED not in log.read_text():
            if child.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"ray start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        child.terminate()
        child.wait(60)


@contextmanager
def cluster(gpus: list[str]) -> Iterator[str]:
    """A head without GPUs, and a node for each; the dashboard's address."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    port, dashboard, agent = choose_ports(None, 3)
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, ExitStack() as nodes:
        nodes.enter_context(node(Path(folder, "head.log"), *head, "--num-gpus=0", f"--temp-dir={folder}"))
        for gpu in gpus:
            words = (f"--address=127.0.0.1:{port}", "--num-gpus=1", "--num-cpus=8")
            nodes.enter_context(node(Path(folder, f"{gpu}.log"), *words, CUDA_VISIBLE_DEVICES=gpu))
        yield f"http://127.0.0.1:{dashboard}"


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

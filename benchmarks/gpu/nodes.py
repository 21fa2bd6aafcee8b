"""chain.py as a job of a Ray cluster whose nodes are this host's GPUs, one each: what needs no other stage runs side by side.

    python benchmarks/gpu/nodes.py WORK RANKS NODES [apart] [chain.py's words ...]    # NODES: how many GPUs, each a node

To Ray, verl, torchrun and NCCL's rendezvous they are hosts of one GPU; they share this host's memory, disk and loopback. The
cluster asks for a token, as Ray's do by default. Words for SFT or RL over all of them: `nodes=NODES`; for both at once
on one each: `recipe=model_merging`. apart: each node, and the head where chain.py runs, is a host of its own in namespaces
(tests/hosts.py), with its own address, name, processes, /tmp and shared memory: NCCL then goes by TCP. They share the checkout,
the environments and WORK; RANKS must lie outside of /tmp and /dev/shm, or WORK/model be there. Needs root and iproute2.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from hosts import Host, NotPermitted, hosts

from synergy import paths
from synergy.machine import choose_ports

HERE = Path(__file__).resolve().parent
RAY = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
PATIENCE = 120.0
"""Seconds for a node to join."""
JOINED = "Ray runtime started"


def words_at(host: Host | None, *argv: str) -> list[str]:
    """A command line that runs one on that host; None: on this machine itself."""
    return list(argv) if host is None else host.words(*argv, cwd=Path.cwd())


@contextmanager
def node(host: Host | None, log: Path, *words: str, **env: str) -> Iterator[None]:
    """`ray start` until the end of the block, which begins when the node has joined."""
    address = "127.0.0.1" if host is None else host.address
    with log.open("wb") as file:
        argv = words_at(host, *RAY, f"--node-ip-address={address}", *words)
        child = subprocess.Popen(argv, env={**os.environ, **env}, stdout=file, stderr=file)
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
def cluster(gpus: Sequence[str], places: Sequence[Host | None]) -> Iterator[str]:
    """A head without GPUs, and a node for each; the dashboard's address. places: of the head and of the nodes."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    port, dashboard, agent = choose_ports(None, 3)
    head, *others = places
    address = "127.0.0.1" if head is None else head.address
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, ExitStack() as nodes:
        ports = (f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
        words = ("--head", *ports, f"--dashboard-host={address}", "--num-gpus=0", f"--temp-dir={folder}")
        nodes.enter_context(node(head, Path(folder, "head.log"), *words))
        for gpu, place in zip(gpus, others, strict=True):
            words = (f"--address={address}:{port}", "--num-gpus=1", "--num-cpus=8")
            nodes.enter_context(node(place, Path(folder, f"{gpu}.log"), *words, CUDA_VISIBLE_DEVICES=gpu))
        yield f"http://{address}:{dashboard}"


@contextmanager
def apart(count: int, work: Path) -> Iterator[list[Host]]:
    """A head and as many hosts as there are GPUs."""
    work.mkdir(parents=True, exist_ok=True)
    model = (work / "model").resolve()
    shared = [paths.ROOT, paths.ENVS, work, *([model] if model.exists() else [])]
    with hosts("head", *(f"node-{number}" for number in range(count)), shared=shared) as made:
        yield made


def main(argv: list[str]) -> int:
    if len(argv) < 3:
        raise SystemExit(__doc__)
    work, ranks, count, *words = argv
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (seen.split(",") if seen else [str(number) for number in range(int(count))])[: int(count)]
    with ExitStack() as stack:
        places: Sequence[Host | None] = [None] * (1 + len(gpus))
        if "apart" in words:
            try:
                places = stack.enter_context(apart(len(gpus), Path(work).absolute()))
            except NotPermitted as error:
                raise SystemExit(f"apart: {error}") from error
        address = stack.enter_context(cluster(gpus, places))
        chain = (str(HERE / "chain.py"), str(Path(work).absolute()), str(Path(ranks).absolute()), f"address={address}")
        words = [word for word in words if word != "apart"]
        return subprocess.run(words_at(places[0], sys.executable, *chain, *words), check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

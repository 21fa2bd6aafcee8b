"""A real S3 server for tests, on loopback or a host of its own (`hosts.py`): nanio (PyPI), which keeps objects as files
and checks Signature V4.

It has no TLS, no policies, no throttling, and is never stale; it has no quota either, so a limit stands before it that answers
as servers with quotas do. `python s3_server.py FOLDER PORT QUOTA_BYTES ADDRESS`, keys in NANIO_ACCESS_KEY and NANIO_SECRET_KEY.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hosts import Host

ACCESS, SECRET, BUCKET = "tester", "only-for-these-tests", "bucket"
FULL = b"<?xml version='1.0'?><Error><Code>QuotaExceeded</Code><Message>The bucket's quota is used up</Message></Error>"


@dataclass
class Server:
    """data: where the objects lie. process: the server's, to stop, continue or kill."""

    data: Path
    port: int
    process: subprocess.Popen[bytes]
    address: str = "127.0.0.1"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs to know, in the environment."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # nanio 0.1.7 keeps their trailers as content
        }

    def files(self) -> dict[str, bytes]:
        root = self.data / BUCKET
        return {
            str(p.relative_to(root)): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file() and not p.relative_to(root).parts[0].startswith(".")
        }


@contextmanager
def serving(data: Path, quota: int = 1 << 60, host: Host | None = None) -> Iterator[Server]:
    """The server with one bucket. data: a folder that the host sees too."""
    from synergy.machine import hold_port  # not where this file is the server's program

    held = hold_port(None)
    port = held.getsockname()[1]
    address = host.address if host else "127.0.0.1"
    (data / BUCKET).mkdir(parents=True, exist_ok=True)
    keys = {"NANIO_ACCESS_KEY": ACCESS, "NANIO_SECRET_KEY": SECRET, "NANIO_DATA_DIR": str(data)}
    command = [sys.executable, __file__, str(data), str(port), str(quota), address]
    process = subprocess.Popen(
        host.words(*command) if host else command, env={**os.environ, **keys}, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            if _answers(address, port, host):
                break
            assert process.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield Server(data, port, process, address)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        held.close()


def _answers(address: str, port: int, host: Host | None) -> bool:
    if host:
        return host.run("bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}").returncode == 0
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@dataclass
class Link:
    """A way to a server. env: what a client of it needs to know; most: it holds back what comes after so many bytes; passed:
    bytes; asked: requests."""

    env: dict[str, str]
    most: int
    passed: int = 0
    asked: int = 0


@contextmanager
def linked(server: Server, most: int = 1 << 60) -> Iterator[Link]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        link = Link(server.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.getsockname()[1]}"}, most)
        lock = threading.Lock()

        def carry(source: socket.socket, target: socket.socket, counted: bool) -> None:
            with suppress(OSError), source, target:
                while data := source.recv(1 << 16):
                    while counted and link.passed >= link.most:
                        time.sleep(0.01)
                    target.sendall(data)
                    with lock:
                        link.passed += len(data) * counted
                        link.asked += data.count(b" HTTP/1.1\r\n") * counted

        def open_up() -> None:
            with suppress(OSError):
                while True:
                    client, there = door.accept()[0], socket.create_connection(("127.0.0.1", server.port))
                    for ends in ((client, there, True), (there, client, False)):
                        threading.Thread(target=carry, args=ends, daemon=True).start()

        threading.Thread(target=open_up, daemon=True).start()
        try:
            yield link
        finally:
            link.most = 1 << 60
            door.shutdown(socket.SHUT_RDWR)


def limited(app: Any, data: Path, quota: int) -> Any:
    """The server's app, with room for so many bytes."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "PUT":
            size = int(dict(scope["headers"]).get(b"content-length", b"0"))
            if size + sum(p.stat().st_size for p in data.rglob("*") if p.is_file()) > quota:
                while (await receive()).get("more_body"):
                    pass
                head = [(b"content-type", b"application/xml"), (b"content-length", str(len(FULL)).encode())]
                await send({"type": "http.response.start", "status": 403, "headers": head})
                await send({"type": "http.response.body", "body": FULL})
                return
        await app(scope, receive, send)

    return answer


if __name__ == "__main__":
    import uvicorn
    from nanio.app import build_app

    folder, number, most = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    app = build_app()
    chosen = app if most >= 1 << 60 else limited(app, folder, most)
    uvicorn.run(chosen, host=sys.argv[4], port=number, log_level="error", access_log=False)

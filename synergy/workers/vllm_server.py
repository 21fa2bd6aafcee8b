"""vLLM OpenAI-compatible servers for as long as a `with` block lasts, stopped whatever happens."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from synergy import paths
from synergy.machine import HOST, die_with_parent, hold_port

EXTENSION = "loopback_store.Extension"
"""Of vLLM's workers (launch/plugins): torch's store would listen on all addresses."""
_GRACE_SECONDS = 10.0
_ERROR = re.compile(r"\b(?!EngineDead)\w*(?:Error|Exception): \S")


class ServerError(RuntimeError):
    """The server ended, or was not ready in time; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class ServerConfig:
    """`port` None: any free one. `args` are vLLM's own; `env` is added to the environment. Times in seconds.

    `key`: what each request must bear, so that no other process of this machine is answered; a random one."""

    model: Path
    served_name: str
    log: Path
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    startup_timeout: float = 600.0
    key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)


@dataclass(frozen=True)
class Server:
    """A server that was started; not necessarily ready."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    key: str = field(repr=False)

    @property
    def endpoint(self) -> str:
        """Base URL of its OpenAI API."""
        return f"http://{HOST}:{self.port}/v1"

    def check(self) -> None:
        """Raises ServerError if the server has ended."""
        code = self.process.poll()
        if code is not None:
            self.fail(f"the vLLM server on port {self.port} ended with code {code}")

    def fail(self, reason: str) -> NoReturn:
        """Raises ServerError with the last lines of the log."""
        raise ServerError(f"{reason}; {last_lines(self.log)}")

    def ready(self) -> bool:
        """Whether /health answers. Raises ServerError if the server has ended."""
        try:
            with _direct.open(f"http://{HOST}:{self.port}/health", timeout=5.0) as reply:
                healthy = bool(reply.status == 200)
        except (OSError, http.client.HTTPException):  # the latter: some other server's answer
            healthy = False
        self.check()
        return healthy


# Without the proxies of the environment: a proxy cannot reach our loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def last_lines(log: Path, lines: int = 12) -> str:
    """The lines of a log that name an error, or else its end, for a message, with where the rest is. What a dying vLLM
    writes last says nothing of the cause: requests it refuses, and a library's list of leaks."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1_000_000))
        rows = [row for row in file.read().decode(errors="replace").splitlines() if row.strip()]
    errors = list(dict.fromkeys(row for row in rows if _ERROR.search(row)))[:lines]
    what, shown = ("errors in", errors) if errors else ("last lines of", rows[-lines:])
    return f"{what} {log}:\n" + "\n".join(row[:500] for row in shown)


def command(config: ServerConfig, port: int) -> list[str]:
    """The server's command line. Sampling defaults are vLLM's neutral ones, not those of the model's
    generation_config.json, which would add a repetition penalty that no recipe names; `args` may say otherwise."""
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    where = [
        "--model",
        str(config.model),
        "--served-model-name",
        config.served_name,
        "--host",
        HOST,
        "--port",
        str(port),
        "--worker-extension-cls",
        EXTENSION,
    ]
    return [*program, *where, "--generation-config", "vllm", *config.args]


def environment(config: ServerConfig) -> dict[str, str]:
    """Of the server: the key is here, since an argument could be read by anyone."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), paths.pythonpath())))
    return {"VLLM_HOST_IP": HOST, **os.environ, "PYTHONPATH": path, **config.env, "VLLM_API_KEY": config.key}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and the whole group: SIGTERM, _GRACE_SECONDS, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end and _group_lives(process):
            time.sleep(0.05)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader: a zombie would keep the group alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def serve(config: ServerConfig) -> Iterator[Server]:
    """Start a server and yield at once, before it is ready; stop its whole process group at the end of the block."""
    config.log.parent.mkdir(parents=True, exist_ok=True)
    with hold_port(config.port) as held:  # vLLM takes it a minute from now
        port = held.getsockname()[1]
        with config.log.open("wb") as log:
            process = subprocess.Popen(
                command(config, port),
                env=environment(config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            yield Server(process, port, config.log, config.key)
        finally:
            stop(process)


@contextmanager
def serve_all(configs: Sequence[ServerConfig]) -> Iterator[list[Server]]:
    """Servers side by side, as `serve` does one. At the end all are asked to stop before any is waited for."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(config)) for config in configs]
        try:
            yield servers
        finally:
            for server in servers:
                with suppress(ProcessLookupError):
                    os.killpg(server.process.pid, signal.SIGTERM)

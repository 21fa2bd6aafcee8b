"""The server of the evaluate stage: ports, a server that dies, and that nothing outlives the block or its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from synergy.errors import UserError
from synergy.machine import HOST, choose_ports, hold_port
from synergy.workers import vllm_server
from synergy.workers.vllm_server import ServerConfig, ServerError, last_lines, serve

IP_LOCAL_PORT_RANGE = 51
"""ip(7), Linux 6.3: from which a port is chosen for this socket."""
ROOT = Path(__file__).resolve().parent.parent

# Stands for vLLM, which takes 20 s to start: a parent that answers /health and a child, like its engine, that has to go too.
FAKE_SERVER = """
import http.server, pathlib, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("PIDS").write_text(str(engine.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake_package(folder: Path, program: str) -> str:
    """A folder for PYTHONPATH in which `python -m vllm.entrypoints.openai.api_server` is `program`."""
    package = folder / "fake" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "api_server.py").write_text(program.replace("PIDS", str(folder / "engine.pid")))
    return str(folder / "fake")


def config(tmp: Path, program: str, **changes: Any) -> ServerConfig:
    path = fake_package(tmp, program)
    return ServerConfig(model=tmp, served_name="m", log=tmp / "server.log", env={"PYTHONPATH": path}, **changes)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.05)


def test_server_is_ready_and_then_gone_with_its_children(tmp_path: Path) -> None:
    with serve(config(tmp_path, FAKE_SERVER)) as server:
        wait_until(server.ready)
        engine = int((tmp_path / "engine.pid").read_text())
        assert alive(engine) and server.endpoint.endswith(f":{server.port}/v1")
    assert not alive(server.process.pid) and not alive(engine)


def test_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "_GRACE_SECONDS", 0.5)
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAKE_SERVER
    with serve(config(tmp_path, stubborn)) as server:
        wait_until(server.ready)
    assert not alive(server.process.pid)


def test_dying_server_is_named_with_its_error(tmp_path: Path) -> None:
    program = "print('loading')\nraise ValueError('no such dtype')"
    with serve(config(tmp_path, program)) as server, pytest.raises(ServerError, match="no such dtype") as caught:
        while not server.ready():
            time.sleep(0.05)
    assert "code 1" in str(caught.value) and "server.log" in str(caught.value)


def test_cause_is_found_before_the_noise(tmp_path: Path) -> None:
    noise = "POST 500 Internal Server Error\n" * 50 + 'nanobind: - leaked function "get"\n' * 50
    log = tmp_path / "log"
    log.write_text("x\nRuntimeError: CPU Generator does not use offset\nEngineDeadError: see above\n" + noise)
    assert last_lines(log).splitlines()[1:] == ["RuntimeError: CPU Generator does not use offset"]


def test_port_in_use_is_the_users_to_mend(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}"):
            choose_ports(port, 1)
        done = worker(tmp_path, server={"port": port})
        assert done.wait(30) == 2
        assert f"port={port}" in (tmp_path / "worker.log").read_text()
    assert choose_ports(port, 1) == [port]


def test_a_held_port_is_for_its_server_alone() -> None:
    with hold_port(None) as held, socket.socket() as other:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
        other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, 0))
        with socket.create_server((HOST, port)) as server, socket.create_connection((HOST, port)):
            server.accept()[0].close()


def test_what_another_server_answers_is_not_ready(tmp_path: Path) -> None:
    """Ray's gRPC servers answer any request with their settings in HTTP/2."""

    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as peer:
            peer.recv(65536)
            peer.sendall(bytes.fromhex("00001804000000000000040000"))

    with (
        serve(config(tmp_path, "import time; time.sleep(600)")) as server,
        socket.create_server((HOST, server.port)) as other,
    ):
        threading.Thread(target=answer, args=(other,), daemon=True).start()
        assert not server.ready()


def worker(tmp: Path, **changes: Any) -> subprocess.Popen[bytes]:
    """`synergy.workers.evaluate` on a model folder, with this Python in place of the evaluation environment's."""
    (tmp / "model").mkdir()
    (tmp / "model" / "config.json").write_text("{}")
    (tmp / "out").mkdir()
    spec = {
        "model": str(tmp / "model"),
        "model_name": "m",
        "server": {},
        "eval_python": sys.executable,
        "benchmarks": [],
        "out": str(tmp / "out"),
        "work_dir": str(tmp / "work"),
        **changes,
    }
    (tmp / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "synergy.workers.evaluate", str(tmp / "spec.json")]
    with (tmp / "worker.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_does_not_outlive_the_worker(tmp_path: Path, number: signal.Signals) -> None:
    # This eval/run.py has a table to read before anything else: a pipe that nobody writes to keeps it waiting.
    os.mkfifo(tmp_path / "slow.tsv")
    spec = {
        "server": {"env": {"PYTHONPATH": fake_package(tmp_path, FAKE_SERVER)}},
        "benchmarks": [{"name": "T", "tsv": str(tmp_path / "slow.tsv"), "kind": "open"}],
        "runs": 1,
        "workers": 1,
        "sampling": {},
    }
    child = worker(tmp_path, **spec)
    wait_until((tmp_path / "engine.pid").exists)
    wait_until(lambda: (tmp_path / "engine.pid").read_text() != "")
    own = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    wait_until(lambda: len(own.read_text().split()) == 2)
    started = [int(pid) for pid in own.read_text().split()]
    child.send_signal(number)
    assert child.wait(30) == (143 if number == signal.SIGTERM else -number)
    wait_until(lambda: not any(alive(pid) for pid in started))
    if number == signal.SIGTERM:
        assert not alive(int((tmp_path / "engine.pid").read_text()))
    else:
        os.kill(int((tmp_path / "engine.pid").read_text()), signal.SIGKILL)  # the driver finds such by their mark


def test_bad_spec_is_one_message(tmp_path: Path) -> None:
    child = worker(tmp_path, model=str(tmp_path / "nowhere"))
    assert child.wait(30) == 2
    assert "nowhere" in (tmp_path / "worker.log").read_text()

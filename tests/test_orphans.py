"""What a driver that was killed left running: the next one ends exactly that, whatever it calls itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_driver import DRIVER, Script, _wait, run, stage, todo

from synergy import machine, stages
from synergy.driver import orphans, process

DAEMON = """
import ctypes, os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
ctypes.CDLL(None).prctl(1, 0)
if len(sys.argv) == 2:  # as setproctitle does it once all is imported: what /proc tells of the environment is gone
    time.sleep(3)
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", "VLLM::EngineCore"], {})
time.sleep(300)
"""
"""A server in a session of its own whose parents have gone: as vLLM's engine and Ray's daemons are once their driver is."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())


@pytest.mark.parametrize("hides", [False, True])
def test_a_killed_driver_s_daemons_are_ended_and_no_others(tmp_path: Path, hides: bool) -> None:
    """Beside it another run directory runs the same stage, with a daemon of the same name."""
    script = "test -f $WORK/once && echo x > $WORK/result && exit; touch $WORK/once; "
    script += f"{sys.executable} -c '{DAEMON}' {'hides' * hides}; sleep 300"
    one, drivers, servers = stage("one", script), [], []
    for name in ("mine", "other"):
        start = f"execute.process.MEMORY_SECONDS = 0.5; t.run(root, t.stage('one', {script!r}))"
        program = DRIVER.replace("t.run(root, *t.chain())", start)
        (tmp_path / name).mkdir()
        drivers.append(subprocess.Popen([sys.executable, "-c", program, "", str(tmp_path / name)]))
        file = tmp_path / name / orphans.FILE
        _wait(lambda file=file: file.exists() and len(_pids(file)) >= 3)  # sh, its sleep, and the daemon
        told = [psutil.Process(pid) for pid in _pids(file)]
        servers += [p for p in told if "sleep(300)" in " ".join(p.cmdline()) and p.name().startswith("python")]
    assert len(servers) == 2
    if hides:
        _wait(lambda: all("VLLM::EngineCore" in p.cmdline() and process.MARK not in p.environ() for p in servers))
    for driver in drivers:
        driver.kill()
        driver.wait()
    time.sleep(0.5)
    assert all(server.is_running() for server in servers), "no kill of a driver reaches its daemons"
    assert run(tmp_path / "mine", one) in (["run"], ["resume"])
    _wait(lambda: not servers[0].is_running())
    assert servers[1].is_running(), "another run directory's processes are let alone, though key and name are the same"
    assert not (tmp_path / "mine" / orphans.FILE).exists()
    assert orphans.sweep(tmp_path / "other", grace=1.0) >= 1
    _wait(lambda: not servers[1].is_running())


def test_a_number_that_now_means_another_process_is_let_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "300"], start_new_session=True)
    boot, _, ticks = str(machine.born(other.pid)).partition("/")
    rows = [
        {"pid": other.pid, "born": f"{boot}/{int(ticks) - 1}"},
        {"pid": other.pid, "born": f"an earlier boot/{ticks}"},
        {"pid": other.pid},
        {"pid": "x", "born": 3},
        {"pid": 2**40, "born": "y"},
        ["?"],
    ]
    (tmp_path / orphans.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"pid": 1')
    assert orphans.sweep(tmp_path, grace=0.5) == 0 and other.poll() is None
    register = orphans.Register(tmp_path)
    register.seen([psutil.Process(other.pid)])
    register.seen([psutil.Process(other.pid)])
    assert len((tmp_path / orphans.FILE).read_text().splitlines()) == 1
    assert orphans.sweep(tmp_path) == 1 and other.wait(10) == -signal.SIGTERM


def test_a_driver_spares_what_it_started_for_an_earlier_job(tmp_path: Path) -> None:
    mine, left = (
        subprocess.Popen(
            ["sleep", "300"], start_new_session=True, env={**os.environ, process.MARK: f"{tmp_path}-{name}"}
        )
        for name in ("warm", "left")
    )
    register = orphans.Register(tmp_path)
    for one, name in ((mine, "warm"), (left, "left")):
        register.mark(f"{tmp_path}-{name}")
        register.seen([psutil.Process(one.pid)])
    try:
        assert orphans.sweep(tmp_path, spare=f"{tmp_path}-warm") == 1
        assert left.wait(10) == -signal.SIGTERM and mine.poll() is None
    finally:
        mine.kill()
        mine.wait()


def test_what_bears_the_mark_goes_even_if_it_was_never_seen(tmp_path: Path) -> None:
    one = stage("one")
    folder = todo(tmp_path, one).steps[0].folder
    orphans.Register(tmp_path).mark(str(folder))
    orphan = subprocess.Popen(["sleep", "300"], env={**os.environ, process.MARK: str(folder)}, start_new_session=True)
    run(tmp_path, one)
    _wait(lambda: orphan.poll() is not None)


def _pids(file: Path) -> list[int]:
    return [row["pid"] for row in orphans._rows(file) if "pid" in row]

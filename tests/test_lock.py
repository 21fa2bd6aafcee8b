"""One driver at a time: two real processes, a killed one, one on another host that lives or is gone, and clocks that jump."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest
from test_driver import Script, run, stage, todo

from synergy import machine, paths, stages
from synergy.driver import execute, lock
from synergy.driver.execute import Limits
from synergy.errors import UserError

HOLDER = f"""
import sys, time
sys.path[:0] = [{str(paths.PACKAGE.parent)!r}]
from pathlib import Path
from synergy import machine
from synergy.driver import lock
root, elsewhere = Path(sys.argv[1]), sys.argv[2:] == ["elsewhere"]
lock.BEAT_SECONDS, lock.SILENT_SECONDS = 0.2, 2.0
if elsewhere:  # as another host would look from here: no flock of ours, another name, another boot
    import filelock._marker, socket
    lock._lock_kernel = lambda root, stack: False
    machine.born = lambda pid: "another boot/1"
    filelock._marker.host_name = lambda: "another-host"
with lock.held(root) as still:
    print("held", flush=True)
    while True:
        time.sleep(0.1)
        still()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 2.0)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that has no flock, as the driver sees it."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", missing)
    monkeypatch.setattr(machine, "on_local_disk", lambda path: False)


class Holder:
    def __init__(self, root: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(root), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Holder]:
    found = Holder(tmp_path, *getattr(request, "param", ()))
    yield found
    found.process.kill()
    found.process.communicate()


ELSEWHERE = pytest.mark.parametrize("holder", [("elsewhere",)], indirect=True)


def refusal(root: Path, takeover: bool = False) -> str:
    with pytest.raises(UserError) as told, lock.held(root, takeover):
        pass
    return str(told.value)


def test_a_second_driver_is_told_who_works_there(tmp_path: Path, holder: Holder) -> None:
    with pytest.raises(UserError) as told:
        run(tmp_path, stage("one"))
    day = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    words = (
        rf"process {holder.process.pid} on {os.uname().nodename}, since {day}: .*; last heartbeat {day}\); wait for it"
    )
    assert re.search(words, str(told.value)) and "\n" not in str(told.value)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_kernel_frees_the_lock_of_a_killed_driver_at_once(tmp_path: Path, holder: Holder) -> None:
    holder.signal(signal.SIGKILL)
    assert (tmp_path / lock.LEASE).exists()
    started = time.monotonic()
    assert run(tmp_path, stage("one")) == ["run"]
    assert time.monotonic() - started < 30 and not (tmp_path / lock.LEASE).exists(), "it does not watch for a minute"


def test_without_flock_a_killed_driver_of_this_host_is_known_to_be_gone(
    tmp_path: Path, holder: Holder, network: None
) -> None:
    assert "another driver works" in refusal(tmp_path)
    holder.signal(signal.SIGKILL)
    assert run(tmp_path, stage("one")) == ["run"]


@ELSEWHERE
@pytest.mark.parametrize("takeover", [False, True])
def test_a_live_driver_on_another_host_is_never_displaced(
    tmp_path: Path, holder: Holder, network: None, takeover: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dates say: this host's clock is a year ahead, then a year behind."""
    clock = time.time
    for jump in (0, 3e7, -3e7):
        monkeypatch.setattr(time, "time", lambda jump=jump: clock() + jump)
        assert "another driver works" in refusal(tmp_path, takeover)
    assert holder.process.poll() is None


@ELSEWHERE
def test_a_silent_driver_on_another_host_is_explained_and_taken_over_on_request_only(
    tmp_path: Path, holder: Holder, network: None
) -> None:
    holder.signal(signal.SIGSTOP)
    told = refusal(tmp_path)
    assert "no sign of life for 2 s" in told and "run.takeover=true" in told and f"process {holder.process.pid}" in told
    one = todo(tmp_path, stage("one"))
    execute.run(one, Limits(takeover=True), execute.Watcher(*[lambda *_: None] * 3))
    holder.signal(signal.SIGCONT)


@ELSEWHERE
def test_a_suspended_driver_that_was_displaced_stops(tmp_path: Path, holder: Holder, network: None) -> None:
    holder.signal(signal.SIGSTOP)
    with lock.held(tmp_path, takeover=True) as still:
        holder.signal(signal.SIGCONT)
        _, error = holder.process.communicate(timeout=10)
        assert holder.process.returncode == 1 and "has taken" in error and f"process {os.getpid()}" in error
        still()
    assert not (tmp_path / lock.LEASE).exists()


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path, network: None) -> None:
    """Pid 1 lives; the one that held the lease was born at another time."""
    lease = filelock.SoftFileLease(tmp_path / lock.LEASE, lease_duration=2.0, heartbeat_interval=0.2)
    with lease:
        record = (tmp_path / lock.LEASE).read_text().replace(f"pid={os.getpid()}", "pid=1")
    (tmp_path / lock.LEASE).write_text(record)
    with lock.held(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "filelock/2\npid=", "\x00\xff", "pid 7 on there\n"])
def test_a_torn_lease_or_owner_stops_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / lock.LEASE).write_text(text)
    (tmp_path / lock.OWNER).write_text(text)
    assert run(tmp_path, stage("one")) == ["run"]
    assert json.loads((tmp_path / lock.OWNER).read_text())["pid"] == os.getpid()


def test_birth_does_not_follow_the_clock() -> None:
    mine = machine.born(os.getpid())
    assert mine is not None and mine != machine.born(1) and machine.born(2**22 + 1) is None


def test_disks_are_told_apart() -> None:
    assert not machine.on_local_disk(Path("/proc/self"))
    assert machine.on_local_disk(Path("/dev/shm"))


def test_a_stall_is_silence_and_not_a_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock jumps a day on at every look; a log file's dates lie in the past."""
    clock, jumps = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * next(jumps))
    talks = "for i in 1 2 3 4 5 6; do echo $i; touch -d '2001-01-01' ../attempt-1/log.txt; sleep 0.5; done"
    assert run(tmp_path, stage("one", f"{talks}; echo x > $WORK/result"), stall_seconds=2.5, stage_seconds=60) == [
        "run"
    ]

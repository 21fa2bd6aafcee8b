"""Failures say whose they are; those that pass are tried again, and no full disk costs what is published."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_driver import QUIET, Script, chain, run, stage, todo

from synergy import stages
from synergy.driver import execute, failure, publish
from synergy.driver.execute import Limits
from synergy.errors import StageFailed, UserError

ONCE = "if test -f $WORK/tried; then echo fine > $WORK/result; else touch $WORK/tried; echo '{}'; exit 1; fi"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())
    monkeypatch.setattr(execute, "BACK_OFF_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("line", "blame"),
    [
        ("OSError: [Errno 28] No space left on device", "machine"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "user"),
        ("ValueError: No available memory for the cache blocks.", "user"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "machine"),
        ("torch.distributed.DistBackendError: NCCL error in: x.cpp:12, ncclSystemError", "machine"),
        ("KeyError: 'images'", "framework"),
    ],
)
def test_an_error_says_whose_it_is(tmp_path: Path, line: str, blame: str) -> None:
    with pytest.raises(StageFailed, match=rf"exit code 1 \[{blame}\]: ") as told:
        run(tmp_path, stage("one", f"echo 'noise'; echo \"{line}\"; exit 1"))
    assert line in str(told.value), "the log's own words stay"


def test_a_full_disk_outweighs_what_it_breaks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("NCCL error\nNo space left on device\nAddress already in use\n")
    assert failure.cause(log) == failure.DISK
    assert failure.cause(tmp_path / "none").blame == "framework"


def test_the_kernels_memory_killer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([3, 4])
    monkeypatch.setattr(failure, "memory_kills", lambda: next(told))
    with pytest.raises(StageFailed, match=r"signal 9 \[machine\]: the kernel killed a process for want of memory"):
        run(tmp_path, stage("one", "kill -9 $$"))


def test_the_kernel_counts_its_kills() -> None:
    assert failure.memory_kills() >= 0


def test_what_passes_is_tried_again_and_told(tmp_path: Path) -> None:
    one = stage("one", ONCE.format("ncclRemoteError: peer lost"))
    heard: list[str] = []
    watch = replace(QUIET, note=lambda step, text: heard.append(text))
    execute.run(todo(tmp_path, one), Limits(retries=1), watch)
    assert [text.split(" Attempt ")[1] for text in heard] == ["2 follows in 0 s"] and "[machine]" in heard[0]
    folder = todo(tmp_path, one).steps[0].folder
    assert "ncclRemoteError" in (folder / "attempt-1/retried.txt").read_text()
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["attempt"] == 2


@pytest.mark.parametrize(("words", "retries"), [("ncclRemoteError", 0), ("ValueError: x", 3)])
def test_without_retries_or_with_another_fault_there_is_one_attempt(tmp_path: Path, words: str, retries: int) -> None:
    one = stage("one", ONCE.format(words))
    with pytest.raises(StageFailed):
        run(tmp_path, one, retries=retries)
    assert [p.name for p in todo(tmp_path, one).steps[0].folder.glob("attempt-*")] == ["attempt-1"]


def test_retries_end(tmp_path: Path) -> None:
    one = stage("one", "echo ncclRemoteError; exit 1")
    with pytest.raises(StageFailed, match="machine"):
        run(tmp_path, one, retries=2)
    assert len(list(todo(tmp_path, one).steps[0].folder.glob("attempt-*"))) == 3


def test_a_mistake_of_the_users_is_never_retried(tmp_path: Path) -> None:
    one = stage("one", "echo 'ncclRemoteError: set x'; exit 2")
    with pytest.raises(UserError, match="set x"):
        run(tmp_path, one, retries=2)
    assert len(list(todo(tmp_path, one).steps[0].folder.glob("attempt-*"))) == 1


def test_a_stage_over_its_time_is_stopped_and_continues(tmp_path: Path) -> None:
    one = stage("one", "test -f $WORK/step && echo x > $WORK/result && exit; echo 5 > $WORK/step; sleep 60")
    with pytest.raises(StageFailed, match=r"longer than 0\.0\d* hours \(run\.stage_hours\)"):
        run(tmp_path, one, stage_seconds=2)
    assert run(tmp_path, one) == ["resume"]


def test_a_disk_that_fills_up_while_publishing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = chain()
    run(tmp_path, one)
    before = (tmp_path / "ledger.jsonl").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "sync", full)
        with pytest.raises(StageFailed, match=r"\[machine\]: the disk is full"):
            run(tmp_path, one, two)
    assert (tmp_path / "ledger.jsonl").read_text() == before
    assert run(tmp_path, one, two) == ["reuse", "run"]

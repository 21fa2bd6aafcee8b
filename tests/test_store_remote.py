"""What can go wrong between a run directory and its store: a real S3 server that is slow, full, silent or gone; a folder."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s3_server import BUCKET, Server, linked, serving
from test_cli import refused
from test_store import S3, folder, folder_of, published, s3, server, silent

from synergy import paths
from synergy.driver import identity, remote, store
from synergy.errors import StageFailed, UserError

__all__ = ["folder", "s3", "server"]  # fixtures


SEND = """
import sys
from pathlib import Path
from synergy.driver import ledger, store
root = Path(sys.argv[2])
(entry,) = ledger.read(root / "ledger.jsonl").values()
store.send(sys.argv[1], root, entry, lambda *told: None)
"""


def test_an_upload_killed_in_the_middle_leaves_nothing_half(s3: Server, tmp_path: Path) -> None:
    url, entry = f"{S3}/killed", published(tmp_path / "a", big=os.urandom(40_000_000), small=b"x")
    command = [sys.executable, "-c", SEND, url, str(tmp_path / "a")]
    with linked(s3, most=20_000_000) as link:
        sending = subprocess.Popen(command, env={**os.environ, **link.env, "PYTHONPATH": str(paths.ROOT)})
        while link.passed < link.most and sending.poll() is None:
            time.sleep(0.01)
        assert sending.poll() is None, "it can't be over: the rest is held back"
        sending.send_signal(signal.SIGKILL)
        sending.wait()
    assert store.find(url, [entry.key]) == {}
    assert not any(name.startswith("team/runs/killed/entries") for name in s3.files())
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(paths.ROOT)}, check=True)
    (stored,) = store.find(url, [entry.key])[entry.key]
    store.pull(url, stored, folder_of(tmp_path / "b"), silent)
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


def test_what_is_told_of_an_upload_has_left(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(os.urandom(100_000_000))
    seen: list[int] = []
    with linked(s3, most=20_000_000) as link:
        for name, value in link.env.items():
            monkeypatch.setenv(name, value)

        def tick(done: int, total: int) -> None:
            assert done < link.passed + 48_000_000
            seen.append(done)
            if len(seen) > 3:
                link.most = 1 << 60

        remote.connect(S3).upload([(tmp_path / "big", "slow/big")], tick)
    assert seen[-1] == 100_000_000
    assert remote.PIECE * remote.THREADS / remote.STALL_SECONDS < 1.2e6, (
        "a link that brings so much a second is slow, not dead"
    )


def test_wrong_keys_a_missing_bucket_and_no_server_are_one_message(
    s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = s3.files()
    store.probe(S3)
    assert s3.files() == before, "the probe is deleted"
    with pytest.raises(UserError, match="no such bucket"):
        store.probe("s3://nobucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-value")
    with pytest.raises(UserError, match="refuses these credentials") as told:
        store.probe(S3)
    assert "another-secret-value" not in str(told.value)
    with pytest.raises(UserError, match="refuses these credentials"):
        store.find(S3, ["a" * 64])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(UserError, match=r"does not answer.*AWS_ENDPOINT_URL"):
            store.probe(S3)
    for bad in ("bucket/x", "s3://", "s3://b/x?secret_key=abc", "nosuch://b/x"):
        with pytest.raises(UserError, match=r"run\.store="):
            store.probe(bad)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("file://nope/nope", "no absolute path"),
        ("file://{}/nope/nope", "there is no folder .*/nope/nope: mount what it lies on, or make it"),
        ("file:///proc", "writing .* failed"),
        ("file://{}/file", "opening it failed.*Not a directory"),
    ],
)
def test_a_folder_that_is_none_is_refused_and_not_made(
    bad: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=told):
        store.probe(bad.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_read_is_told_as_one(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read all
    with pytest.raises(UserError, match=r"may not work in that folder.*Permission denied") as told:
        store.probe(folder)
    assert "AWS" not in str(told.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "s3") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        entry = published(tmp_path / "a")
        stored = store.send(S3, tmp_path / "a", entry, silent)
        server.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr(remote.Remote.call, "__defaults__", (2.0,))
            patch.setattr(remote, "STALL_SECONDS", 2.0)
            with pytest.raises(UserError, match="does not answer"):
                store.probe(S3)
            with pytest.raises(StageFailed, match="does not answer"):
                store.send(S3, tmp_path / "a", entry, silent)
            with pytest.raises(StageFailed, match="does not answer"):
                store.pull(S3, stored, folder_of(tmp_path / "b"), silent)
        assert time.monotonic() - begun < 45
        server.process.send_signal(signal.SIGCONT)
        store.pull(S3, stored, folder_of(tmp_path / "b"), silent)
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


def test_a_full_bucket_is_one_message_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "s3", quota=2_000_000) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        small, big = published(tmp_path / "a"), published(tmp_path / "b", "b" * 64, big=bytes(2_100_000))
        store.send(S3, tmp_path / "a", small, silent)
        with pytest.raises(StageFailed, match=r"it is full.*The same synergy command sends it"):
            store.send(S3, tmp_path / "b", big, silent)
        assert list(store.find(S3, [small.key, big.key])) == [small.key]
        (server.data / BUCKET / "rest").write_bytes(bytes(2_000_000))
        with pytest.raises(UserError, match="it is full"):
            store.probe(S3)


def test_a_folder_without_room_is_told_before_the_work(folder: str) -> None:
    store.probe(folder, 1000)
    with pytest.raises(UserError, match="GB free"):
        store.probe(folder, 1 << 60)


def test_a_server_that_changes_content_is_found_by_the_probe(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(
        "AWS_REQUEST_CHECKSUM_CALCULATION"
    )  # this server then keeps the new client's trailers as content
    with pytest.raises(UserError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        store.probe(S3)


def test_a_store_of_many_stages_is_listed_in_few_requests(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        remote.connect(f"{S3}/many").write(f"stages/sft-{number}/bb-1/output/half", b"12345")
    with linked(s3) as link:
        for name, value in link.env.items():
            monkeypatch.setenv(name, value)
        assert len(remote.walk(remote.connect(f"{S3}/many"), "stages")) == 20
        assert link.asked < 5


def test_ctrl_c_in_a_transfer_stops_it(s3: Server, tmp_path: Path) -> None:
    entry = published(tmp_path / "a", big=os.urandom(60_000_000))
    begun = threading.active_count()

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.send(f"{S3}/stop", tmp_path / "a", entry, interrupt)
    assert store.find(f"{S3}/stop", [entry.key]) == {}
    end = time.monotonic() + 20
    while threading.active_count() > begun and time.monotonic() < end:
        time.sleep(0.1)
    assert threading.active_count() <= begun


def test_a_run_is_refused_before_its_work(s3: Server, tmp_path: Path) -> None:
    words, root = ["recipe=base", f"run.store={S3}/cli"], tmp_path / "runs"
    wrong = {"AWS_SECRET_ACCESS_KEY": "another-secret-value"}
    refused(root, "refuses these credentials", *words, env=wrong)
    refused(root, "no such bucket", "recipe=base", "run.store=s3://nobucket/x")
    refused(root, "does not answer", *words, env={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    refused(root, "is no plain URL", "recipe=base", "run.store=bucket")
    refused(root, "looks like a secret", "recipe=base", "run.store=sftp://me:password@host/x")
    assert not (root / "ledger.jsonl").exists() and not list(root.glob("stages/*"))

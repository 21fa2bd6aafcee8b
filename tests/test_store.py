"""The store behind a run directory: laws on fsspec's memory and on a folder; a real S3 server, and what can go wrong there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, make_checkpoint
from s3_server import BUCKET, Server, serving
from test_cli import refused

from synergy import clean
from synergy.driver import disk, identity, ledger, manifest, remote, retention, store
from synergy.driver.ledger import Entry
from synergy.errors import StageFailed, UserError

S3 = f"s3://{BUCKET}/team/runs"


def silent(what: str, done: int, total: int) -> None: ...


def published(root: Path, key: str = "a" * 64, shift: float = 0.0, **more: bytes) -> Entry:
    """A finished stage in a run directory, as the driver leaves it."""
    folder = root / "stages" / f"sft-{key[:12]}"
    make_checkpoint(folder / "output", shift)
    for name, data in more.items():
        file = folder / "output" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (folder / "README.md").write_text("the card\n")
    (folder / "attempt-1").mkdir(exist_ok=True)
    (folder / "attempt-1/metrics.jsonl").write_text('{"step": 1}\n')
    output = f"stages/{folder.name}/output"
    digest = identity.digest_of(manifest.write(folder))
    figures = {"metrics": "attempt-1/metrics.jsonl"}
    entry = Entry(key, "sft", "sft", output, digest, identity.fingerprint(root / output), figures=figures)
    ledger.append(root / "ledger.jsonl", entry)
    return entry


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=["memory", "folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    places = {"memory": "memory://laws", "folder": f"file://{tmp_path}", "s3": f"s3://{BUCKET}"}
    return f"{places[request.param]}/{tmp_path.name}"


def folder_of(root: Path, key: str = "a" * 64) -> Path:
    return root / "stages" / f"sft-{key[:12]}"


def test_what_is_sent_arrives_as_it_was(url: str, tmp_path: Path) -> None:
    entry = published(tmp_path / "a", deep__part=b"x" * 1000, empty=b"")
    assert store.find(url, [entry.key, "b" * 64]) == {}
    store.send(url, tmp_path / "a", entry, silent)
    store._entries.clear()
    (found,) = store.find(url, [entry.key, "b" * 64])[entry.key]
    assert replace(found.entry, fingerprint=entry.fingerprint) == entry and found.entry.fingerprint == ""
    here = store.pull(url, found, folder_of(tmp_path / "b"), silent)
    assert content(tmp_path / "a/stages") == {
        name: data for name, data in content(tmp_path / "b/stages").items() if not name.endswith(".pulling")
    }
    assert here.fingerprint == identity.fingerprint(tmp_path / "b" / entry.output) and here.digest == entry.digest


def test_results_that_differ_stand_side_by_side_and_equal_ones_are_one(url: str, tmp_path: Path) -> None:
    one, same, other = published(tmp_path / "a"), published(tmp_path / "b"), published(tmp_path / "c", shift=1.0)
    for root, entry in (("a", one), ("b", same), ("c", other)):
        store.send(url, tmp_path / root, entry, silent)
    store._entries.clear()
    found = store.find(url, [one.key])[one.key]
    assert {stored.entry.digest for stored in found} == {one.digest, other.digest} and len(found) == 2
    for stored in found:
        target = tmp_path / stored.entry.digest / "stages" / "sft"
        store.pull(url, stored, target, silent)
        assert identity.digest(target / "output") == stored.entry.digest


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[:-40],
        lambda text: b"",
        lambda text: b"[1]",
        lambda text: text.replace(b'"place": "stages/', b'"place": "../'),
        lambda text: text.replace(b'"config.json"', b'"../../config.json"'),
        lambda text: text.replace(b'"schema": 1,\n "place"', b'"schema": 2,\n "place"'),
        lambda text: json.dumps({**json.loads(text), "files": {}}).encode(),
        lambda text: text.replace(b'"key": "aaaa', b'"key": "baaa'),
    ],
)
def test_an_entry_that_is_torn_or_forged_is_not_there(harm: Callable[[bytes], bytes], tmp_path: Path) -> None:
    url, entry = f"file://{tmp_path}/store", published(tmp_path / "a")
    store.send(url, tmp_path / "a", entry, silent)
    store._entries.clear()
    file = tmp_path / "store/entries" / entry.key / f"{entry.digest}.json"
    was = file.read_bytes()
    assert harm(was) != was
    file.write_bytes(harm(was))
    assert store.find(url, [entry.key]) == {}
    file.write_bytes(was)
    assert len(store.find(url, [entry.key])[entry.key]) == 1


def test_a_flipped_byte_in_the_store_is_refused_by_name(s3: Server, tmp_path: Path) -> None:
    entry = published(tmp_path / "a", big=os.urandom(200_000))
    stored = store.send(f"{S3}/flip", tmp_path / "a", entry, silent)
    file = s3.data / BUCKET / "team/runs/flip" / stored.place / "output/big"
    was = file.read_bytes()
    file.write_bytes(was[:5] + bytes([was[5] ^ 1]) + was[6:])
    with pytest.raises(StageFailed, match=r"output/big is damaged.*entries/aaaa") as told:
        store.pull(f"{S3}/flip", stored, folder_of(tmp_path / "b"), silent)
    assert "makes the stage anew" in str(told.value) and not (folder_of(tmp_path / "b") / "output").exists()
    file.write_bytes(was)
    said: list[str] = []
    store.pull(f"{S3}/flip", stored, folder_of(tmp_path / "b"), lambda what, done, total: said.append(what))
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest
    assert said, "and only that one file was fetched again"


def test_a_download_that_was_broken_off_goes_on(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published(tmp_path / "a", one=os.urandom(100_000), two=os.urandom(100_000))
    stored = store.send(f"{S3}/off", tmp_path / "a", entry, silent)
    aside = folder_of(tmp_path / "b") / retention.ARRIVING / "output"
    aside.mkdir(parents=True)
    (aside / "one").write_bytes((tmp_path / "a" / entry.output / "one").read_bytes())
    (aside / "two").write_bytes(bytes(100_000))  # the right size, and nothing in it yet
    asked: list[str] = []
    real = remote.Remote.download

    def download(self: remote.Remote, files: list[tuple[str, Path, int]], tick: remote.Tick) -> None:
        asked.extend(file.name for _, file, _ in files)
        real(self, files, tick)

    monkeypatch.setattr(remote.Remote, "download", download)
    store.pull(f"{S3}/off", stored, folder_of(tmp_path / "b"), silent)
    assert "two" in asked and "one" not in asked
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


def test_two_that_pull_at_once_fetch_once(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = published(tmp_path / "a", big=os.urandom(3_000_000))
    stored = store.send(f"{S3}/twice", tmp_path / "a", entry, silent)
    asked: list[str] = []
    real = remote.Remote.download

    def download(self: remote.Remote, files: list[tuple[str, Path, int]], tick: remote.Tick) -> None:
        asked.extend(path for path, _, _ in files)
        real(self, files, tick)

    monkeypatch.setattr(remote.Remote, "download", download)
    told = (f"{S3}/twice", stored, folder_of(tmp_path / "b"), silent)
    threads = [threading.Thread(target=store.pull, args=told) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == len(set(asked)) == len(stored.files) + len(stored.records)
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


SEND = """
import sys
from pathlib import Path
from synergy.driver import ledger, store
root = Path(sys.argv[2])
(entry,) = ledger.read(root / "ledger.jsonl").values()
store.send(sys.argv[1], root, entry, lambda *told: None)
"""


def test_an_upload_killed_in_the_middle_leaves_nothing_half(s3: Server, tmp_path: Path) -> None:
    url, entry = f"{S3}/killed", published(tmp_path / "a", big=os.urandom(150_000_000), small=b"x")
    command = [sys.executable, "-c", SEND, url, str(tmp_path / "a")]
    sending = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    bucket = s3.data / BUCKET
    end = time.monotonic() + 60
    while disk.size(bucket) < 20_000_000 and time.monotonic() < end and sending.poll() is None:
        time.sleep(0.01)
    assert sending.poll() is None, "it was over before it could be killed"
    sending.send_signal(signal.SIGKILL)
    sending.wait()
    assert store.find(url, [entry.key]) == {}
    assert not any(name.startswith("team/runs/killed/entries") for name in s3.files())
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    (stored,) = store.find(url, [entry.key])[entry.key]
    store.pull(url, stored, folder_of(tmp_path / "b"), silent)
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


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


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(remote.Remote.call, "__defaults__", (2.0,))
    monkeypatch.setattr(remote, "STALL_SECONDS", 2.0)
    with serving(tmp_path / "s3") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        entry = published(tmp_path / "a")
        stored = store.send(S3, tmp_path / "a", entry, silent)
        server.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
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


def test_a_folder_without_room_is_told_before_the_work(tmp_path: Path) -> None:
    store.probe(f"file://{tmp_path}/store", 1000)
    with pytest.raises(UserError, match="GB free"):
        store.probe(f"file://{tmp_path}/store", 1 << 60)


def test_a_server_that_changes_content_is_found_by_the_probe(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(
        "AWS_REQUEST_CHECKSUM_CALCULATION"
    )  # this server then keeps the new client's trailers as content
    with pytest.raises(UserError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        store.probe(S3)


def test_clean_deletes_what_was_broken_off_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = published(tmp_path / "a")
    stored = store.send(url, tmp_path / "a", entry, silent)
    remote.connect(url).write("stages/sft-b/bb-1/output/half", b"12345")
    clean.of_store(url, True)
    assert "nothing to clean" in capsys.readouterr().out, "it may still go on"
    monkeypatch.setattr(store, "GONE_SECONDS", -60.0)
    clean.of_store(url, False)
    assert "stages/sft-b/bb-1: an upload" in (told := capsys.readouterr().out) and stored.place not in told
    clean.of_store(url, True)
    clean.of_store(url, True)
    assert capsys.readouterr().out.endswith(f"nothing to clean in {url}\n")
    store._entries.clear()
    store.pull(url, store.find(url, [entry.key])[entry.key][0], folder_of(tmp_path / "b"), silent)
    assert identity.digest(folder_of(tmp_path / "b") / "output") == entry.digest


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

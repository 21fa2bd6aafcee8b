"""The store behind a run directory: laws on fsspec's memory, on a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from s3_server import BUCKET, Server, serving

from synergy import clean
from synergy.driver import identity, ledger, manifest, publish, remote, retention, store
from synergy.driver.ledger import Entry
from synergy.errors import StageFailed

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
    (tmp_path / tmp_path.name).mkdir()
    return f"{places[request.param]}/{tmp_path.name}"


def mounted(place: Path) -> str:
    """A store in a folder."""
    (place / "store").mkdir(parents=True)
    return f"file://{place}/store"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return mounted(tmp_path)


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
def test_an_entry_that_is_torn_or_forged_is_not_there_and_its_files_stay(
    harm: Callable[[bytes], bytes], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, entry = folder, published(tmp_path / "a")
    store.send(url, tmp_path / "a", entry, silent)
    store._entries.clear()
    file = tmp_path / "store/entries" / entry.key / f"{entry.digest}.json"
    was = file.read_bytes()
    assert harm(was) != was
    file.write_bytes(harm(was))
    assert store.find(url, [entry.key]) == {}
    remote.connect(url).write("stages/sft-b/bb-1/output/half", b"12345")
    monkeypatch.setattr(store, "GONE_SECONDS", -60.0)
    left, _ = store.left_over(url)
    assert [one.place for one in left] == ["stages/sft-b/bb-1"]
    file.write_bytes(was)
    assert len(store.find(url, [entry.key])[entry.key]) == 1


@pytest.mark.parametrize(
    "harm", [lambda was: was[:5] + bytes([was[5] ^ 1]) + was[6:], lambda was: was[:70_000], lambda was: b"", None]
)
def test_damage_in_the_store_is_refused_by_name(
    harm: Callable[[bytes], bytes] | None, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 100_000)
    entry = published(tmp_path / "a", big=os.urandom(200_000))
    stored = store.send(f"{S3}/flip", tmp_path / "a", entry, silent)
    there, file = remote.connect(f"{S3}/flip"), f"{stored.place}/output/big"
    was = there.read(file)
    there.write(file, harm(was)) if harm else there.remove(file)
    with pytest.raises(StageFailed, match=r"output/big is damaged or gone.*entries/aaaa") as told:
        store.pull(f"{S3}/flip", stored, folder_of(tmp_path / "b"), silent)
    assert "makes the stage anew" in str(told.value) and not (folder_of(tmp_path / "b") / "output").exists()
    there.write(file, was)
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


def test_what_another_result_left_half_is_not_published(folder: str, tmp_path: Path) -> None:
    entry = published(tmp_path / "a", one=b"1" * 1000)
    stored = store.send(folder, tmp_path / "a", entry, silent)
    target = folder_of(tmp_path / "b")
    (target / retention.ARRIVING / "output").mkdir(parents=True)
    (target / retention.ARRIVING / "output/theirs").write_bytes(b"2")
    assert store.pull(folder, stored, target, silent).digest == identity.digest(target / "output")


def test_what_changes_on_the_way_to_its_place_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, real, target = published(tmp_path / "a", one=b"1" * 1000), publish.publish, folder_of(tmp_path / "b")
    stored = store.send(folder, tmp_path / "a", entry, silent)

    def spoilt(aside: Path, *rest: Any, **more: Any) -> dict[str, str]:
        (aside / "one").write_bytes(b"2" * 1000)
        return real(aside, *rest, **more)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StageFailed, match="not what was fetched: one has another content"),
    ):
        patch.setattr(publish, "publish", spoilt)
        store.pull(folder, stored, target, silent)
    store.pull(folder, stored, target, silent)
    assert identity.digest(target / "output") == entry.digest


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


def test_clean_keeps_all_of_a_stage_whose_entry_is_torn_and_says_so(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = published(tmp_path / "a")
    store.send(folder, tmp_path / "a", entry, silent)
    remote.connect(folder).write(path := f"entries/{entry.key}/{entry.digest}.json", b'{"schema": 1')
    monkeypatch.setattr(store, "GONE_SECONDS", -60.0)
    before = content(tmp_path / "store")
    clean.of_store(folder, True)
    assert f"{path} can't be read, so all of its stage stays" in capsys.readouterr().out
    assert content(tmp_path / "store") == before

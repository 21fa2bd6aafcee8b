"""Upload to the hub: the real client against a hub on loopback that keeps the bytes, and what is refused before any request."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import hub_double
import pytest
from hub_double import READ, WRITE, Hub
from PIL import Image

from synergy import paths, push
from synergy.data import records, upload
from synergy.data.records import Record
from synergy.driver import identity, ledger
from synergy.driver.ledger import Entry
from synergy.errors import UserError

HEAD = """---
license: cc-by-4.0
size_categories: [n<1K]
configs: [{config_name: default, data_files: [{split: train, path: train.jsonl}]}]
---
# Traces
"""
TOKEN_LIKE = "hf_" + "a1B2" * 9


def data_set(folder: Path, count: int = 4, **changes: Any) -> Path:
    """A small data set of ``count`` images of noise."""
    (folder / "images").mkdir(parents=True)
    found = []
    for n in range(count):
        Image.frombytes("L", (28, 28), hashlib.shake_256(b"%d" % n).digest(784)).save(folder / f"images/{n}.png")
        found.append(Record(f"q{n}", "How many?", "3", (f"images/{n}.png",), trace=f"<think>{n}</think>\\boxed{{3}}"))
    records.write(folder / "train.jsonl", found)
    (folder / "README.md").write_text(changes.get("head", HEAD))
    (folder / "selection.json").write_text("[]")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_double.running() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)  # read when another test imported it
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
        yield made
        assert not made.unknown, "requests that the double does not know"


def pushed(*words: str) -> None:
    push.action(push.parse(words))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_double_was_made_for_the_pinned_client() -> None:
    for name in ("train-cpu.txt", "train-gpu.txt"):
        pins = (paths.ROOT / "launch/requirements" / name).read_text()
        (pinned,) = re.findall(r"^huggingface-hub==(\S+)", pins, re.M)
        assert pinned == metadata.version("huggingface-hub"), "look at what tests/hub_double.py answers, then move on"
        assert f"huggingface_hub {'.'.join(pinned.split('.')[:2])}" in str(hub_double.__doc__)


def test_a_dry_run_sends_nothing(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(str(data_set(tmp_path / "d")), "repo=ann/digits")
    told = capsys.readouterr().out
    assert "7 files, 0.0 MB" in told and "1 card, 1 data files, 4 images, 1 reports" in told
    assert f"{hub.url}/datasets/ann/digits, branch main, private" in told and "--yes does it" in told
    assert hub.seen == []


def test_every_byte_arrives_by_commit_and_lfs(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_set(tmp_path / "d")
    pushed(str(folder), "repo=ann/digits", "--yes", "message=First")
    made = hub.repos["ann/digits"]
    assert made.private and made.commits == ["First"] and made.branches["main"] == content(folder)
    assert sorted(hub.lfs.values()) == sorted(file.read_bytes() for file in folder.glob("images/*.png"))
    assert f"done: {hub.url}/datasets/ann/digits/commit/" in capsys.readouterr().out
    (folder / "selection.json").write_text("[1]")
    hub.seen.clear()
    pushed(str(folder), "repo=ann/digits", "--yes")
    assert made.commits == ["First", "Upload 7 files with Synergy"] and made.branches["main"] == content(folder)
    assert not [path for method, path in hub.seen if method == "PUT"], "only what changed"
    pushed(str(folder), "repo=ann/digits", "--yes")
    assert len(made.commits) == 2, "nothing new, no commit"


def test_another_branch_is_made(hub: Hub, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "d")
    pushed(str(folder), "repo=ann/digits", "--yes", "private=false", "revision=v2")
    made = hub.repos["ann/digits"]
    assert not made.private and made.branches["main"] == {} and made.branches["v2"] == content(folder)


@pytest.mark.timeout(120)
def test_the_command_itself_sends_by_xet_what_it_is_given(tmp_path: Path) -> None:
    """As installed: hf_xet chunks and stores the images, here in its own kind of local storage, and the rest is a commit."""
    folder = data_set(tmp_path / "d")
    with hub_double.running() as hub:
        hub.xet = str(tmp_path / "xet")
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE, "HF_HOME": str(tmp_path / "hf")}
        env |= {"PYTHONPATH": str(paths.PACKAGE.parent), "HF_HUB_DISABLE_XET": "0", "HF_HUB_OFFLINE": "0"}
        words = [sys.executable, "-m", "synergy.push", str(folder), "repo=ann/digits", "--yes"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not hub.unknown and ("GET", "/api/datasets/ann/digits/xet-write-token/main") in hub.seen
    arrived = hub.repos["ann/digits"].branches["main"]
    assert WRITE not in done.stdout + done.stderr
    stored = b"".join(file.read_bytes() for file in (tmp_path / "xet").rglob("*") if file.is_file())
    for name, data in content(folder).items():
        if name.endswith(".png"):
            assert arrived[name].decode() == hashlib.sha256(data).hexdigest() and data in stored
        else:
            assert arrived[name] == data


@pytest.mark.parametrize(
    ("token", "repo", "told"),
    [
        ("", "ann/digits", "no token for the hub: set HF_TOKEN"),
        ("hf_unknown", "ann/digits", r"the hub does not know this token.*HTTP 401"),
        (READ, "ann/digits", r"this token may not write to ann/digits.*HTTP 403"),
        (WRITE, "bob/digits", r"this token may not write to bob/digits.*HTTP 403"),
    ],
)
def test_who_may_not_write_is_told(
    token: str, repo: str, told: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=told) as error:
        pushed(str(data_set(tmp_path / "d")), f"repo={repo}", "--yes")
    assert not hub.repos and (not token or token not in str(error.value))


def test_a_reader_of_a_repository_that_is_there_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["ann/digits"] = hub_double.Repo(private=True)
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(UserError, match=r"may not write to ann/digits.*HTTP 403"):
        pushed(str(data_set(tmp_path / "d")), "repo=ann/digits", "--yes")
    assert hub.repos["ann/digits"].branches["main"] == {}


def test_nothing_private_goes_to_a_public_repository_by_accident(hub: Hub, tmp_path: Path) -> None:
    hub.repos["ann/digits"] = hub_double.Repo(private=False)
    folder = data_set(tmp_path / "d")
    with pytest.raises(UserError, match="there already and public"):
        pushed(str(folder), "repo=ann/digits", "--yes")
    assert hub.repos["ann/digits"].branches["main"] == {}
    pushed(str(folder), "repo=ann/digits", "--yes", "private=false")
    assert hub.repos["ann/digits"].branches["main"] == content(folder)


def test_a_hub_that_is_not_there_or_loses_a_file_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_set(tmp_path / "d")
    hub.forgets = "images/2.png"
    with pytest.raises(UserError, match=r"images/2\.png did not arrive"):
        pushed(str(folder), "repo=ann/digits", "--yes")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 can't be reached"):
        pushed(str(folder), "repo=ann/digits", "--yes")


def test_a_hub_that_never_answers_is_not_waited_for(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.silent = 2.0
    monkeypatch.setattr(upload, "PATIENCE", 0.3)
    with pytest.raises(UserError, match=r"can't be reached \(ReadTimeout\)"):
        pushed(str(data_set(tmp_path / "d")), "repo=ann/digits", "--yes")


def test_a_card_that_the_hub_refuses_is_told(hub: Hub, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "d", head=HEAD.replace("n<1K", "few"))
    with pytest.raises(UserError, match=r"ann/digits: .*README\.md"):
        pushed(str(folder), "repo=ann/digits", "--yes")
    assert hub.repos["ann/digits"].branches["main"] == {}


def rewrite(folder: Path, **changes: Any) -> None:
    """The first record, changed."""
    first, *rest = records.read(folder / "train.jsonl")
    records.write(folder / "train.jsonl", [Record(**{**vars(first), **changes}), *rest])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda d: (d / "notes.txt").write_text("x"), r"notes\.txt is no part of the data set"),
        (lambda d: (d / ".env").write_text("x"), r"\.env is no part of the data set"),
        (lambda d: (d / "images/id_rsa").write_text("x"), r"images/id_rsa is no part"),
        (lambda d: (d / "images/1.png").unlink(), r"images/1\.png is named by the card or a record, and not there"),
        (lambda d: (d / "images/9.png").symlink_to("/etc/passwd"), r"images/9\.png is a link"),
        (lambda d: (d / "images/dir").symlink_to("/etc"), r"images/dir is a link"),
        (lambda d: rewrite(d, images=("../x.png",)), r"'\.\./x\.png' leaves the folder"),
        (lambda d: rewrite(d, images=("/x.png",)), r"'/x\.png' is an absolute path"),
        (lambda d: rewrite(d, images=(".ssh/x.png",)), "without hidden parts"),
        (lambda d: rewrite(d, images=("images/key.pem",)), "none of the suffixes"),
        (
            lambda d: rewrite(d, trace=f"my token is {TOKEN_LIKE}"),
            r"train\.jsonl: holds what looks like a secret \(hf_a1B…\)",
        ),
        (lambda d: (d / "selection.json").write_text("-----BEGIN RSA PRIVATE KEY-----"), "looks like a secret"),
        (lambda d: (d / "train.jsonl").write_text("{"), r"train\.jsonl: not JSON lines"),
        (lambda d: (d / "README.md").unlink(), "has no README.md"),
        (lambda d: (d / "README.md").write_text("# Traces"), "no head of YAML"),
        (lambda d: (d / "README.md").write_text("---\n: [\n---\n"), "its head is no YAML"),
        (lambda d: (d / "README.md").write_text("---\nlicense: mit\n---\n"), "names no data files"),
        (lambda d: (d / "README.md").write_text(HEAD.replace("train.jsonl", "t.bin")), "suffix .jsonl"),
    ],
)
def test_what_does_not_belong_there_is_refused_before_any_request(
    spoil: Any, told: str, hub: Hub, tmp_path: Path
) -> None:
    folder = data_set(tmp_path / "d")
    spoil(folder)
    with pytest.raises(UserError, match=told) as error:
        pushed(str(folder), "repo=ann/digits", "--yes")
    assert hub.seen == [] and TOKEN_LIKE not in str(error.value)


def test_a_secret_is_found_across_the_pieces_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CHUNK", 300)
    folder = data_set(tmp_path / "d")
    for start in range(280, 301):
        (folder / "selection.json").write_text(" " * start + TOKEN_LIKE)
        with pytest.raises(UserError, match="looks like a secret"):
            upload.listing(folder)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["repo=ann/d"], "give one folder"),
        (["a", "b", "repo=ann/d"], "give one folder"),
        (["a"], "repo=: give the data set's name"),
        (["a", "repo=digits"], "as repo=user/name"),
        (["a", "repo=ann/d", "private=no"], "private=no: true or false"),
        (["a", "repo=ann/d", "branch=x"], "branch: push takes a folder"),
        (["a", "repo=ann/d", "--force"], "--force: push takes a folder"),
        (["a", "repo=ann/d", f"token={WRITE}"], "a token has no place on a command line"),
    ],
)
def test_words_that_push_does_not_know_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        push.parse(words)
    assert WRITE not in str(error.value)


def test_a_run_directory_gives_its_newest_data_set_unless_it_was_changed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set was made there"):
        (tmp_path / "ledger.jsonl").write_text("")
        push.parse([str(tmp_path), "repo=ann/d"])
    for name in ("old", "new"):
        folder = data_set(tmp_path / f"stages/{name}/output")
        sums = identity.digest_of(identity.sums(folder))
        entry = Entry(name, "prepare", "dataset", f"stages/{name}/output", sums, "", {"settings": {"part": "distill"}})
        ledger.append(tmp_path / "ledger.jsonl", entry)
    assert push.parse([str(tmp_path), "repo=ann/d"]).folder == tmp_path / "stages/new/output"
    (tmp_path / "stages/new/output/train.jsonl").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"stages/new/output.*Copy the folder"):
        push.parse([str(tmp_path), "repo=ann/d"])


def test_help_needs_no_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["push", "--help"])
    assert push.main() == 0 and "repo=user/name" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["push", "x"])
    assert push.main() == 2 and "synergy: repo=" in capsys.readouterr().err

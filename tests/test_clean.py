"""`synergy clean` shows before it acts, and takes nothing that the ledger or a recipe needs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from test_driver import Script, chain, run, stage, todo

from synergy import clean, cli, machine, stages
from synergy.driver import ledger, lock, retention
from synergy.driver.retention import Item
from synergy.errors import UserError


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def litter(root: Path) -> None:
    """What kills at several moments leave, beside a finished stage, an unfinished one and a report."""
    folder = todo(root, *chain()).steps[0].folder
    for name in ("superseded-1", ".publishing", "work/checkpoint-3"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(os.urandom(8192))
    (root / "stages/rl-unfinished/work").mkdir(parents=True)
    (root / "stages/rl-unfinished/work/step").write_text("3")
    (root / ".probe-7").write_text("")
    (root / ".trash-7-sft-1").mkdir()
    (root / ".trash-7-sft-1/x").write_text("x")
    (root / "reports/.sft-1-7").mkdir(parents=True)
    (root / "reports/sft-1").mkdir()
    (root / "reports/sft-1/report.html").write_text("x")


def test_it_shows_and_then_takes_leftovers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, *chain())
    before = files(tmp_path)
    litter(tmp_path)
    littered = files(tmp_path)
    clean.of_folder(tmp_path, unfinished=False, act=False)
    assert files(tmp_path) == littered and "would delete 6" in capsys.readouterr().out
    clean.of_folder(tmp_path, unfinished=False, act=True)
    assert files(tmp_path) - before == {"stages/rl-unfinished/work/step", "reports/sft-1/report.html"}
    assert before <= files(tmp_path)
    clean.of_folder(tmp_path, unfinished=True, act=True)
    assert files(tmp_path) - before == {"reports/sft-1/report.html"}
    assert run(tmp_path, *chain()) == ["reuse", "reuse"]


def test_stages_that_no_recipe_needs_go_and_are_made_again(tmp_path: Path) -> None:
    one, two = chain()
    run(tmp_path, one, two)
    needed = {todo(tmp_path, one, two).steps[0].key}
    items = retention.unneeded(tmp_path, ledger.read(tmp_path / "ledger.jsonl"), needed)
    assert [item.why.split()[0] for item in items] == ["two"]
    retention.remove(tmp_path, items)
    steps = todo(tmp_path, one, two).steps
    assert [step.action for step in steps] == ["reuse", "run"] and steps[1].why == "its output is gone"
    assert run(tmp_path, one, two) == ["reuse", "run"]


def test_nothing_goes_while_a_driver_works(tmp_path: Path) -> None:
    run(tmp_path, *chain())
    litter(tmp_path)
    before = files(tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="nothing was deleted"):
        clean.of_folder(tmp_path, unfinished=True, act=True)
    assert files(tmp_path) == before


def test_nothing_goes_while_a_driver_of_another_host_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel's lock means nothing."""

    def missing(_: FileLock) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(FileLock, "_acquire", missing)
    monkeypatch.setattr(machine, "on_local_disk", lambda path: False)
    litter(tmp_path)
    before = files(tmp_path)
    with lock.held(tmp_path), pytest.raises(UserError, match=r"nothing was deleted: another driver works"):
        clean.of_folder(tmp_path, unfinished=True, act=True)
    assert set(before) <= set(files(tmp_path))


def test_what_lies_outside_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "runs/stages/x").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "runs/stages/x/superseded-1").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="outside"):
        clean.of_folder(tmp_path / "runs", unfinished=False, act=True)
    assert (tmp_path / "mine").is_dir()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("x")
    monkeypatch.setattr(sys, "argv", ["synergy", "clean", str(tmp_path), "--yes"])
    assert cli.main() == 2 and (tmp_path / "precious").exists()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
def test_hard_links_free_nothing_as_long_as_one_stays(tmp_path_factory: pytest.TempPathFactory, links: list) -> None:
    """links: (which of four files, whether the link goes)."""
    root = tmp_path_factory.mktemp("links")
    names = [root / str(number) for number in range(4)]
    for name in names:
        name.write_bytes(b"x" * 4096)
    for number, (which, _) in enumerate(links):
        os.link(names[which], root / f"link{number}")
    going = [Item(root / f"link{n}", "") for n, (_, goes) in enumerate(links) if goes]
    assert retention.freed(going) == 0, "the files themselves stay"
    free = {which for which in range(4) if all(goes for w, goes in links if w == which)}
    told = retention.freed([*going, *(Item(names[which], "") for which in range(4))])
    assert told == sum(names[which].stat().st_blocks * 512 for which in free)
    for name in root.iterdir():
        name.unlink()


def test_a_stage_that_was_kept_is_not_touched(tmp_path: Path) -> None:
    kept = stage("kept")
    run(tmp_path, kept)
    keys = {todo(tmp_path, kept).steps[0].key}
    assert retention.unneeded(tmp_path, ledger.read(tmp_path / "ledger.jsonl"), keys) == []

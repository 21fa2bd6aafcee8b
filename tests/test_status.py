"""`synergy status`: what runs, how it ended, and what is finished; and the card beside every stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from test_driver import QUIET, Script, chain, run, stage, todo

from synergy import paths, stages, status
from synergy.driver import card, execute, scan, state
from synergy.driver.execute import Limits
from synergy.errors import StageFailed, UserError

DRIVER = f"""
import sys
sys.path[:0] = [{str(paths.PACKAGE.parent)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
import test_driver as t
from synergy import stages
from synergy.driver import execute, state
stages.kind = lambda name: t.Script()
todo = t.todo(Path(sys.argv[1]), t.stage("one"), t.stage("two", "sleep 60", {{"model": "one"}}))
with state.recording(todo, t.QUIET) as watch:
    execute.run(todo, execute.Limits(), watch)
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())


def recorded(root: Path, *planned: stages.Stage) -> None:
    made = todo(root, *planned)
    with state.recording(made, QUIET) as watch:
        execute.run(made, Limits(), watch)


def told(root: Path) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    status.show(root, console)
    return console.export_text()


def test_a_finished_run_is_told_with_its_stages(tmp_path: Path) -> None:
    recorded(tmp_path, *chain())
    text = told(tmp_path)
    assert "finished" in text and "2 sft" in text and "running" not in text
    found = state.read(tmp_path)
    assert found is not None and [s.state for s in found.stages] == ["done", "done"] and found.alive is False
    recorded(tmp_path, *chain())
    found = state.read(tmp_path)
    assert found is not None and [s.state for s in found.stages] == ["reused", "reused"]


def test_a_failure_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(StageFailed):
        recorded(
            tmp_path, stage("one"), stage("two", "echo 'ValueError: [red] words'; exit 1"), stage("three", "true # 3")
        )
    text = told(tmp_path)
    assert "stopped" in text and "ValueError: [red] words" in text and "the same command continues it" in text
    found = state.read(tmp_path)
    assert found is not None and [s.state for s in found.stages] == ["done", "failed", "waiting"]


def test_a_live_driver_and_a_killed_one_are_told_apart(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.PIPE)
    end = time.time() + 20
    while True:
        found = state.read(tmp_path)
        if found is not None and [s.state for s in found.stages] == ["done", "running"]:
            break
        assert driver.poll() is None and time.time() < end, driver.stderr and driver.stderr.read()
        time.sleep(0.05)
    assert found.alive is True and f"process {driver.pid}" in told(tmp_path)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    text = told(tmp_path)
    assert "was killed" in text and "failed" in text and "running" not in text


def test_a_refused_driver_does_not_speak_for_the_one_that_works(tmp_path: Path) -> None:
    from filelock import FileLock

    recorded(tmp_path, stage("one"))
    before = (tmp_path / state.FILE).read_text()
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another driver"):
        recorded(tmp_path, stage("one"), stage("two", "true # 2"))
    assert (tmp_path / state.FILE).read_text() == before


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', '{"schema": 99, "stages": []}'])
def test_a_state_that_cannot_be_read_is_no_state(tmp_path: Path, text: str) -> None:
    run(tmp_path, stage("one"))
    (tmp_path / state.FILE).write_text(text)
    assert state.read(tmp_path) is None
    assert "finished stages" in told(tmp_path)


def test_no_run_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        told(tmp_path)
    (tmp_path / state.FILE).write_text("{")
    (tmp_path / "ledger.jsonl").write_text("torn")
    with pytest.raises(UserError, match=r"no line of its state\.json and ledger\.jsonl can be read"):
        told(tmp_path)


def test_a_process_of_the_same_number_is_not_the_driver(tmp_path: Path) -> None:
    recorded(tmp_path, stage("one"))
    text = (tmp_path / state.FILE).read_text().replace('"ended": "finished"', '"ended": ""')
    (tmp_path / state.FILE).write_text(text)
    found = state.read(tmp_path)
    assert found is not None and found.alive is True
    born = f'"born": "{found.born}"'
    assert born in text
    (tmp_path / state.FILE).write_text(text.replace(born, '"born": "another boot/1"'))
    found = state.read(tmp_path)
    assert found is not None and found.alive is False


def test_every_stage_has_a_card_that_names_its_parents(tmp_path: Path) -> None:
    run(tmp_path, *chain())
    one, two = todo(tmp_path, *chain()).steps
    text = (two.folder / card.FILE).read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    blocks = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]
    assert one.entry is not None and two.entry is not None
    assert blocks[0]["key"] == two.key and blocks[0]["content"] == two.entry.digest and blocks[0]["recipe"] == "test"
    assert blocks[1] == {"model": {"name": "one", "key": one.key, "content": one.entry.digest}}
    assert blocks[2] == two.parts["settings"]
    assert not (two.folder / "output" / card.FILE).exists(), "the output is the same however it was made"


def damage(folder: Path, how: str) -> str:
    """Damages a published output; returns what must be said of it."""
    file = folder / "output/result"
    stat = file.stat()
    if how == "flipped bit":
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(data)
        return "result has another content"
    if how == "flipped bit, date restored":
        damage(folder, "flipped bit")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return "result has another content"
    if how == "truncated":
        os.truncate(file, 5)
        return "result has another content"
    if how == "gone":
        file.unlink()
        return "result is gone"
    (folder / "output/extra").write_text("x")
    return "extra is new"


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "gone", "extra"])
def test_damage_is_named_with_its_file_and_never_built_on(tmp_path: Path, how: str) -> None:
    one, two = chain()
    run(tmp_path, one)
    words = damage(todo(tmp_path, one).steps[0].folder, how)
    step = todo(tmp_path, one, two).steps[0]
    assert step.action == "run" and words in step.why and "put it back" in step.why
    run(tmp_path, one, two)
    assert (step.folder / "superseded-2").is_dir(), "the damaged result is kept for who wants to look"
    assert [s.action for s in todo(tmp_path, one, two).steps] == ["reuse", "reuse"]


@pytest.mark.parametrize("how", ["flipped bit", "flipped bit, date restored", "truncated", "gone", "extra"])
def test_verify_reads_everything(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CLOCK_SECONDS", -60.0)  # what was read once is remembered, however new
    run(tmp_path, *chain())
    monkeypatch.setattr(sys, "argv", ["synergy status", str(tmp_path), "--verify"])
    assert status.main() == 0
    words = damage(todo(tmp_path, *chain()).steps[1].folder, how)
    console = Console(width=300, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    assert not status.verify(tmp_path, console)
    assert words in console.export_text()
    assert status.main() == 1


def test_swapped_outputs_are_both_told(tmp_path: Path) -> None:
    run(tmp_path, *chain())
    one, two = (step.folder for step in todo(tmp_path, *chain()).steps)
    (one / "output").rename(tmp_path / "aside")
    (two / "output").rename(one / "output")
    (tmp_path / "aside").rename(two / "output")
    steps = todo(tmp_path, *chain()).steps
    assert [step.action for step in steps] == ["run", "run"]
    assert "result has another content" in steps[0].why
    assert not status.verify(tmp_path, Console(file=open(os.devnull, "w")))  # noqa: SIM115


def test_a_stage_without_manifest_is_still_checked(tmp_path: Path) -> None:
    run(tmp_path, stage("one"))
    step = todo(tmp_path, stage("one")).steps[0]
    (step.folder / "manifest.json").unlink()
    assert todo(tmp_path, stage("one")).steps[0].action == "reuse"
    damage(step.folder, "truncated")
    assert "not recorded" in todo(tmp_path, stage("one")).steps[0].why

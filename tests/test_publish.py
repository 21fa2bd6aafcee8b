"""Publishing where folders can't be renamed, and ledgers that several wrote to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_driver import DRIVER, Script, chain, run, todo
from test_ledger import entry

from synergy import stages
from synergy.driver import ledger, manifest, plan, publish
from synergy.driver.plan import Workspace
from synergy.errors import StageFailed, UserError


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())


def no_rename(number: int = errno.EPERM) -> object:
    def rename(self: Path, target: Path) -> Path:
        if self.is_dir():
            raise OSError(number, os.strerror(number), str(self))
        os.rename(self, target)
        return target

    return rename


@pytest.mark.parametrize("number", publish.NO_RENAME)
def test_where_folders_cannot_be_renamed_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "rename", no_rename(number))
    run(tmp_path, *chain())
    folder = todo(tmp_path, *chain()).steps[0].folder
    (folder / "output/result").write_text("tampered")
    assert run(tmp_path, *chain()) == ["run", "run"] and run(tmp_path, *chain()) == ["reuse", "reuse"]
    assert (folder / "superseded-2/result").read_text() == "tampered"
    assert not (folder / ".publishing").exists()


COPIES = DRIVER.replace(
    "t.run(root, *t.chain())", "import test_publish as p\nPath.rename = p.no_rename()\nt.run(root, *t.chain())"
)
COPIES = COPIES.replace(
    "def kill(",
    "import shutil\nreal = shutil.copytree\ndef half(a, b, **k): b.mkdir(); (b / 'result').write_text('ha'); kill()\ndef kill(",
    1,
)
POINTS = {"mid-copy": "publish.shutil.copytree = half", "before the marker": "publish.manifest.write = kill"}


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_the_middle_of_a_copy_nothing_half_counts_and_nothing_is_left(tmp_path: Path, point: str) -> None:
    program = COPIES.replace("import test_publish", f"{POINTS[point]}\nimport test_publish")
    done = subprocess.run([sys.executable, "-c", program, "", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = todo(tmp_path, *chain()).steps[0].folder
    assert (folder / "output").exists() and not (folder / manifest.FILE).exists()
    assert run(tmp_path, *chain()) == ["run", "run"]
    assert (folder / "output/result").read_text() == f"{folder}/work\n"
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("attempt")) == [
        "README.md",
        manifest.FILE,
        "output",
    ]


def test_a_rename_that_loses_files_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "result").write_bytes((source / "result").read_bytes()[:-1])

    monkeypatch.setattr(publish, "move", lossy)
    with pytest.raises(StageFailed, match=r"\[machine\]: the file system lost files"):
        run(tmp_path, *chain())
    assert not ledger.read(tmp_path / "ledger.jsonl")


def test_a_rename_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def twice(self: Path, target: Path) -> Path:
        real(self, target)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", twice)
    (tmp_path / "a").mkdir()
    publish.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_dir()
    with pytest.raises(FileNotFoundError):
        publish.move(tmp_path / "none", tmp_path / "c")


def test_a_read_only_place_is_one_clear_error(tmp_path: Path) -> None:
    """/proc refuses to make a folder, and a file in one that is there, even to root."""
    for place in ("/proc/synergy", "/proc/self"):
        with pytest.raises(UserError, match=rf"run\.dir={place} can't be written \(.+\); set run\.dir"):
            plan.require_space(Workspace(Path(place)), 0)


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    """Two drivers that no lock kept apart, as on a mount without locks."""
    file = tmp_path / "ledger.jsonl"
    names = [[f"{writer}-{n}" for n in range(40)] for writer in range(4)]
    writers = [
        threading.Thread(target=lambda keys=keys: [ledger.append(file, entry(k)) for k in keys]) for keys in names
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(ledger.read(file)) == {name for keys in names for name in keys}


@pytest.mark.parametrize(
    "noise", ["\x00" * 64, '{"key": "x"', '"text"', "[1]", '{"schema": 1}', '{"schema": 1, "key": 3}']
)
def test_lines_that_are_none_cost_only_themselves(tmp_path: Path, noise: str) -> None:
    """Zeros after a power cut, an append that was cut off and another that followed it, rows of another shape."""
    file = tmp_path / "ledger.jsonl"
    ledger.append(file, entry("a"))
    with file.open("a") as stream:
        stream.write(noise)
    ledger.append(file, entry("b"))
    with file.open("a") as stream:
        stream.write(noise + "\n")
    ledger.append(file, entry("c"))
    assert set(ledger.read(file)) == {"a", "b", "c"}


def test_an_append_into_another_s_torn_line_loses_neither(tmp_path: Path) -> None:
    """A file system whose appends are not atomic: one line stands in the middle of another's remains."""
    file = tmp_path / "ledger.jsonl"
    for key in "ab":
        ledger.append(file, entry(key))
    first, second = file.read_text().splitlines()
    file.write_text(first[:40] + second + "\n" + first + "\n")
    assert set(ledger.read(file)) == {"a", "b"}

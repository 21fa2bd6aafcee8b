"""The driver: plan, publish, reuse, failure, interruption and SIGKILL, with real child processes.

The stage kind here is a shell script in place of a framework: the driver treats all kinds alike (test_conformance.py holds the
real ones to the same interface), and a script can die or hang on command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from synergy import paths, stages
from synergy.driver import execute, ledger, plan, process
from synergy.driver.execute import Limits
from synergy.driver.externals import External
from synergy.driver.plan import Plan, Workspace
from synergy.errors import StageFailed, UserError
from synergy.stages import Command, Job, Progress, Stage

QUIET = execute.Watcher(lambda step: None, lambda step, now: None, lambda step, word, seconds: None)


class Script:
    """A kind whose work is the shell text in ``settings['script']``; it writes its result to ``$WORK/result``."""

    IDENTITY = frozenset({"script", "value"})
    RUNTIME = frozenset({"note"})
    FRAMEWORKS: tuple[str, ...] = ()
    PACKAGES: tuple[str, ...] = ()
    NATIVE = "sh"
    VERSION = 1

    def identity(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: settings[name] for name in settings if name in self.IDENTITY}

    def check(self, stage: Stage, pythons: Mapping[str, str]) -> None: ...

    def command(self, job: Job) -> Command:
        return Command(("sh", "-c", job.settings["script"]), {"WORK": str(job.work)}, job.attempt)

    def resume_point(self, job: Job) -> int | None:
        return int((job.work / "step").read_text()) if (job.work / "step").exists() else None

    def progress(self, job: Job) -> Progress | None:
        return None

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        if not (job.work / "result").exists():
            raise StageFailed("no result")
        out.mkdir()
        (out / "result").write_text((job.work / "result").read_text())
        return {"value": job.settings.get("value")}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())


def stage(
    name: str, script: str = "echo $WORK > $WORK/result", inputs: Mapping[str, str] | None = None, **more: Any
) -> Stage:
    return Stage(name, "sft", {"script": script, **more}, inputs or {})


def todo(root: Path, *planned: Stage) -> Plan:
    root.mkdir(exist_ok=True)
    space = Workspace(root)
    return Plan("test", plan.make(list(planned), {}, space, {}), space, {})


def run(root: Path, *planned: Stage, **limits: Any) -> list[str]:
    """Runs the stages; returns the action of each."""
    made = todo(root, *planned)
    execute.run(made, Limits(**{"stall_seconds": 60, **limits}), QUIET)
    return [step.action for step in made.steps]


def chain(**more: Any) -> tuple[Stage, Stage]:
    return stage("one", value=1, **more), stage("two", inputs={"model": "one"})


def test_finished_stages_are_reused(tmp_path: Path) -> None:
    assert run(tmp_path, *chain()) == ["run", "run"]
    assert run(tmp_path, *chain()) == ["reuse", "reuse"]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_run_time_settings_reuse_and_identity_settings_do_not(tmp_path: Path) -> None:
    run(tmp_path, *chain(note="a"))
    assert run(tmp_path, *chain(note="b")) == ["reuse", "reuse"]
    changed = replace(chain()[0], settings={**chain()[0].settings, "value": 2})
    steps = todo(tmp_path, changed, chain()[1]).steps
    assert [s.action for s in steps] == ["run", "run"], "the second stage builds on another first one"
    assert "settings.value: 1 -> 2" in steps[0].why


def test_an_output_that_was_changed_is_made_again_and_the_old_one_kept(tmp_path: Path) -> None:
    run(tmp_path, *chain())
    folder = todo(tmp_path, *chain()).steps[0].folder
    (folder / "output/result").write_text("tampered")
    steps = todo(tmp_path, *chain()).steps
    assert "changed after it was published (result has another content)" in steps[0].why
    assert run(tmp_path, *chain()) == ["run", "run"]
    assert (folder / "superseded-2/result").read_text() == "tampered"


def test_a_copied_run_directory_is_reused_though_times_and_inodes_differ(tmp_path: Path) -> None:
    import shutil

    run(tmp_path / "a", *chain())
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert [s.action for s in todo(tmp_path / "b", *chain()).steps] == ["reuse", "reuse"]


def test_a_failure_tells_the_last_lines_and_publishes_nothing(tmp_path: Path) -> None:
    first, second = chain()
    bad = replace(second, settings={"script": "echo working; echo out of luck >&2; exit 7"})
    with pytest.raises(StageFailed, match=r"two.*exit code 7(.|\n)*out of luck(.|\n)*command.sh") as error:
        run(tmp_path, first, bad)
    assert error.value.folder == todo(tmp_path, first, bad).steps[1].folder, "a sweep tries it in no other job"
    assert len(ledger.read(tmp_path / "ledger.jsonl")) == 1
    assert run(tmp_path, first, second) == ["reuse", "run"]


def test_a_users_mistake_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage one: the file is bad$"):
        run(tmp_path, stage("one", "echo noise; echo the file is bad; exit 2"))


def test_a_program_that_is_not_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose packages are there and whose programs are not: seen on a host that got it packed."""
    gone = Command((str(tmp_path / "bin/llamafactory-cli"), "train"), {})
    monkeypatch.setattr(Script, "command", lambda self, job: gone)
    with pytest.raises(UserError, match=r"bin/llamafactory-cli can't be started .*synergy doctor"):
        run(tmp_path / "runs", stage("one"))


def test_a_silent_stage_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    hang = stage("one", "setsid sleep 300 & echo started; sleep 300")
    with pytest.raises(StageFailed, match="said nothing"):
        run(tmp_path, hang, stall_seconds=1.0)
    folder = todo(tmp_path, hang).steps[0].folder
    assert not list(process.marked(str(folder))), "a daemon in a session of its own is found by its mark"
    assert json.loads((folder / "attempt-1/outcome.json").read_text())["code"] == -signal.SIGTERM


def test_the_command_runs_by_hand(tmp_path: Path) -> None:
    run(tmp_path, stage("one", "echo \"it's $WORK\" > $WORK/result; echo 'a  b'"), stall_seconds=60)
    folder = todo(tmp_path, stage("one", "echo \"it's $WORK\" > $WORK/result; echo 'a  b'")).steps[0].folder
    (folder / "work").mkdir()
    done = subprocess.run([folder / "attempt-1/command.sh"], capture_output=True, text=True, check=True)
    assert done.stdout == "a  b\n"
    assert (folder / "work/result").read_text() == (folder / "output/result").read_text()


def test_disk_and_permissions_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GB free"):
        plan.require_space(Workspace(tmp_path), 1 << 60)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        plan.require_space(Workspace(tmp_path / "file"), 1)


def test_inputs_from_outside_count_by_content(tmp_path: Path) -> None:
    one = stage("one", inputs={"model": "base"})
    keys = set()
    for digest in ("a", "b", "a"):
        external = {"base": External(tmp_path, digest)}
        keys.add(plan.make([one], external, Workspace(tmp_path), {})[0].key)
    assert len(keys) == 2


DRIVER = f"""
import os, signal, sys
sys.path[:0] = [{str(paths.PACKAGE.parent)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
import test_driver as t
from synergy import stages
from synergy.driver import execute, ledger, publish
stages.kind = lambda name: t.Script()
point, root = sys.argv[1], Path(sys.argv[2])
def kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
if point == "before the child": execute.process.run = kill
if point == "after the child": t.Script.collect = kill
if point == "before the rename": publish.sync = kill
if point == "before the ledger": execute.ledger.append = kill
if point == "after the ledger": execute.shutil.rmtree = lambda p, **k: kill() if p.name == "work" else None
t.run(root, *t.chain())
"""
POINTS = ["before the child", "after the child", "before the rename", "before the ledger", "after the ledger"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_same_command_ends_with_the_same_result(tmp_path: Path, point: str) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER, point, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run(tmp_path, *chain())
    steps = todo(tmp_path, *chain()).steps
    assert [step.action for step in steps] == ["reuse", "reuse"]
    for step in steps:
        assert (step.folder / "output/result").read_text() == f"{step.folder}/work\n"
        assert not (step.folder / ".publishing").exists() and not (step.folder / "work").exists()
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 2, "no stage is recorded twice"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_all_children_and_the_next_run_resumes(tmp_path: Path, number: int) -> None:
    script = (
        "test -f $WORK/step && echo again > $WORK/result && exit; echo 3 > $WORK/step; setsid sleep 300 & sleep 300"
    )
    program = DRIVER.replace(
        "t.run(root, *t.chain())",
        f"signal.signal(signal.SIGTERM, signal.default_int_handler); t.run(root, t.stage('one', {script!r}))",
    )
    driver = subprocess.Popen([sys.executable, "-c", program, "", str(tmp_path)], stderr=subprocess.DEVNULL)
    one = stage("one", script)
    folder = todo(tmp_path, one).steps[0].folder
    _wait(lambda: (folder / "work/step").exists() and len(list(process.marked(str(folder)))) >= 2)
    os.kill(driver.pid, number)
    driver.wait(timeout=40)
    assert not list(process.marked(str(folder)))
    step = todo(tmp_path, one).steps[0]
    assert (step.action, step.why) == ("resume", "stopped after step 3")
    assert run(tmp_path, one) == ["resume"]


def test_an_interruption_that_python_drops_is_not_lost(tmp_path: Path) -> None:
    """As an exception in a callback of fork is: said on stderr, and ignored."""
    program = DRIVER.replace(
        "t.run(root, *t.chain())",
        "from synergy import interrupt; interrupt.listen()\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "t.run(root, t.stage('one', 'sleep 300'))",
    )
    driver = subprocess.run(
        [sys.executable, "-c", program, "", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "KeyboardInterrupt" in driver.stderr and driver.returncode in (1, 130, -signal.SIGINT), driver.stderr
    assert not list(process.marked(str(todo(tmp_path, stage("one", "sleep 300")).steps[0].folder)))


def _wait(condition: Any, seconds: float = 20) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"not within {seconds} s; {psutil.cpu_percent()} % busy"
        time.sleep(0.05)

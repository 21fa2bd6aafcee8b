"""``run.keep=final`` takes what rounds left in between, never what a plan needs, and a plan tells what it would cost.

The stages are those of the real recipes with a double in place of every framework (quick.py), and for SIGKILL a shell script
in a driver of its own (test_driver.py).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from quick import RECIPES, Clock, Killed, doubles, drive, todo
from test_driver import DRIVER
from test_strategies import config

from synergy import clean
from synergy.driver import keep, ledger, plan, retention
from synergy.driver.card import MODELS
from synergy.driver.plan import Plan
from synergy.errors import UserError


def finals(made: Plan) -> set[Path]:
    """Checkpoints that a plan evaluates or ends with."""
    models = [step for step in made.steps if step.stage.kind in MODELS]
    users = {
        step.stage.name: [u.stage.kind for u in made.steps if step.stage.name in u.stage.inputs.values()]
        for step in models
    }
    return {step.folder for step in models if not users[step.stage.name] or "evaluate" in users[step.stage.name]}


def whole(root: Path, recipe: str) -> None:
    """Everything is reused, and the models that count are there."""
    made = todo(root, recipe)
    assert {step.action for step in made.steps} == {"reuse"}, recipe
    assert all((folder / "output/result").exists() for folder in finals(made)), recipe
    assert all((s.folder / "output").exists() for s in made.steps if s.stage.kind not in MODELS), "only checkpoints go"


def test_only_rounds_go_and_their_records_stay(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with doubles(Clock()):
        drive(root, ["progressive"], "final")
        whole(root, "progressive")
        made = {step.stage.name: step for step in todo(root, "progressive").steps}
        gone = {name for name, step in made.items() if not (step.folder / "output").exists()}
        assert gone == {"sft-1", "rl-1", "sft-2", "rl-2"}
        for name in gone:
            assert {"README.md", "manifest.json", "attempt-1", "pruned.json"} <= {
                p.name for p in made[name].folder.iterdir()
            }
            assert made[name].why.endswith("its checkpoint was let go, and nothing here needs it")
        assert len(ledger.read(root / "ledger.jsonl")) == len(made)


def test_what_is_needed_once_more_is_told_and_made_again(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with doubles(Clock()):
        drive(root, ["progressive"], "final")
        before = {s.stage.name: s.entry.digest for s in todo(root, "progressive").steps if s.entry}
        last = next(step for step in todo(root, "progressive").steps if step.stage.name == "rl-2")
        third = next(step for step in todo(root, "progressive").steps if step.stage.name == "rl-3")
        shutil.rmtree(third.folder / "output")
        made = {step.stage.name: step for step in todo(root, "progressive").steps}
        assert made["rl-2"].why == "its checkpoint was let go (run.keep=final), and rl-3 needs it: its output is gone"
        assert made["rl-1"].why == "its checkpoint was let go (run.keep=final), and sft-2 needs it"
        assert [made[n].action for n in ("data", "sft-1", "rl-1", "rl-3")] == ["reuse", "run", "run", "run"]
        drive(root, ["progressive"], "final")
        whole(root, "progressive")
        assert {s.stage.name: s.entry.digest for s in todo(root, "progressive").steps if s.entry} == before
        assert not (last.folder / "output").exists(), "and goes again"


def test_records_of_a_checkpoint_are_put_by(tmp_path: Path) -> None:
    folder = tmp_path / "stages/rl-1"
    (folder / "output").mkdir(parents=True)
    for name in ("passes.jsonl", "model.safetensors", "config.json"):
        (folder / "output" / name).write_text(name)
    entry = ledger.Entry("k", "rl", "rl-1", "stages/rl-1/output", "d", "f")
    retention.take(tmp_path, [retention.Item(folder / "output", "", entry)])
    assert [p.name for p in (folder / "records").iterdir()] == ["passes.jsonl"]
    assert retention.pruned(folder, entry) and not (folder / "output").exists()
    assert not list(tmp_path.glob(".trash-*"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_keeps_all(recipe: str, tmp_path: Path) -> None:
    with doubles(Clock()):
        drive(tmp_path / "runs", [recipe], "all")
        assert all((step.folder / "output").exists() for step in todo(tmp_path / "runs", recipe).steps)


def test_another_recipes_model_stays_even_before_it_is_evaluated(tmp_path: Path) -> None:
    """recipe=rl was killed between its model and the evaluation; data mixing, which only samples from it, must not take it."""
    root, clock = tmp_path / "runs", Clock()
    drive(root, ["rl"], "all", clock)
    at = clock.names.index("start eval-rl") + 1
    shutil.rmtree(root)
    with pytest.raises(Killed):
        drive(root, ["rl"], "all", Clock(at))
    drive(root, ["data_mixing"], "final")
    (steps,) = drive(root, ["rl"], "final")
    assert next(step for step in steps if step.stage.name == "rl").action == "reuse"
    with doubles(Clock()):
        whole(root, "rl")
        whole(root, "data_mixing")


def test_what_an_unfinished_stage_of_another_recipe_reads_stays(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with doubles(Clock()):
        drive(root, ["interleaved"], "all")
        made = todo(root, "interleaved")
        first = next(step for step in made.steps if step.stage.name == "rl-1")
        assert first.folder / "output" in {item.path for item in keep.spent(root, [made], set())}
        attempt = root / "stages/sft-of-another/attempt-1"
        attempt.mkdir(parents=True)
        (attempt / "config.yaml").write_text(f"model_name_or_path: {first.folder}/output\n")
        assert first.folder / "output" not in {item.path for item in keep.spent(root, [made], set())}


runs = st.lists(
    st.tuples(st.lists(st.sampled_from(RECIPES), min_size=1, max_size=2, unique=True), st.sampled_from(retention.POLICIES),
              st.none() | st.integers(1, 60)),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(
    deadline=None, max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # shrinking takes minutes
@given(runs)
def test_whatever_runs_under_whatever_policy_nothing_needed_is_lost(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[list[str], str, int | None]]
) -> None:
    """Sweeps in turn in one run directory, some killed at a boundary and repeated."""
    root, done = tmp_path_factory.mktemp("keep") / "runs", set[str]()
    for recipes, policy, kill in jobs:
        try:
            drive(root, recipes, policy, Clock(kill))
        except Killed:
            drive(root, recipes, policy)
        done |= set(recipes)
        with doubles(Clock()):
            for recipe in done:
                whole(root, recipe)
    shutil.rmtree(root.parent)


POINT = """
from synergy.driver import retention
from synergy.driver.keep import Keeper
one, two, three = t.stage("one"), t.stage("two", inputs={"model": "one"}), t.stage("three", inputs={"model": "two"})
real = retention.shutil.rmtree
if point == "before the rename": retention._remove = kill
if point == "mid-prune": retention.shutil.rmtree = lambda p, **k: kill() if ".trash-" in str(p) and p.exists() else real(p, **k)
made = t.todo(root, one, two, three)
execute.run(made, execute.Limits(), t.QUIET, keeper=Keeper.of("final", [made]))
"""


@pytest.mark.parametrize("point", ["before the rename", "mid-prune"])
def test_sigkill_while_a_checkpoint_goes(point: str, tmp_path: Path) -> None:
    program = DRIVER.replace("t.run(root, *t.chain())", POINT)
    done = subprocess.run([sys.executable, "-c", program, point, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.glob(".trash-*"))) == (point == "mid-prune")
    outputs = {p.parent for p in tmp_path.glob("stages/*/output")}
    assert all((p / "output/result").exists() for p in outputs), "no half of a checkpoint under its own name"
    again = subprocess.run([sys.executable, "-c", program, "", str(tmp_path)], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(list(tmp_path.glob("stages/*/output"))) == 1 and len(list(tmp_path.glob("stages/*/pruned.json"))) == 2
    left = retention.leftovers(tmp_path, ledger.read(tmp_path / "ledger.jsonl"))
    assert [item.path.name.startswith(".trash-") for item in left] == [True] * (point == "mid-prune")


def test_clean_shows_and_takes_by_the_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synergy.compose import Task

    root = tmp_path / "runs"
    with doubles(Clock()):
        drive(root, ["progressive"], "all")
        monkeypatch.setattr(plan, "of_config", lambda cfg: todo(root, "progressive"))
        task = Task("progressive", "progressive", (), config("progressive", "run.keep=final"))
        clean.of_recipes([task], False, False)
        told = capsys.readouterr().out
        assert told.count("(run.keep=final)") == 4 and "would delete 4" in told
        assert all((step.folder / "output").exists() for step in todo(root, "progressive").steps)
        clean.of_recipes([task], False, True)
        whole(root, "progressive")
        clean.of_recipes([task], False, True)
    assert "nothing to clean" in capsys.readouterr().out


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.keep='some' is one of all, final"):
        retention.check_policy("some")

"""Given checkpoints: their file, bad ones told in one message, and what is planned and reported from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_checkpoint
from test_cli import call
from test_report import Runs

from synergy import checkpoints, compose, reproduce, strategies
from synergy.compose import Task
from synergy.driver import plan as driver_plan
from synergy.driver.externals import resolve
from synergy.errors import UserError
from synergy.report import reproduce as tables
from synergy.report import reproduce_page

HUB = "JierunChen/SFT-RL-SynergyDilemma-RL"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("base", "sft", "rl")):
        make_checkpoint(tmp_path / name, shift=number)
    return tmp_path


def file(root: Path, text: str) -> Path:
    found = root / "models.yaml"
    found.write_text(text.replace("ROOT", str(root)))
    return found


def test_a_file_of_models(models: Path) -> None:
    told = checkpoints.read(
        file(
            models,
            f"sft: ROOT/sft\nmine: {{path: ROOT/rl, recipe: rl_no_kl, instructed: false}}\n"
            f"q: {{path: ROOT/base, base: true}}\nhub: {{path: {HUB}, revision: {COMMIT}}}\n",
        )
    )
    assert [(one.name, one.recipe, one.base) for one in told] == [
        ("q", "", True), ("sft", "sft", False), ("mine", "ablation/rl_kl_0", False), ("hub", "", False),
    ]  # fmt: skip
    assert told[3].revision == COMMIT and told[2].instructed is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [", "is no YAML"),
        ("", "must map names of models"),
        ("- a\n- b", "must map names of models"),
        ("base: ROOT/base\nsft: ROOT/sft\nsft: ROOT/rl", r"line 3: 'sft' is there twice"),
        ("base: ROOT/base\nsft: ROOT/nowhere", r"sft\.path=\S+nowhere: no such folder"),
        ("base: ROOT/base\nsft: ROOT", r"has no config\.json"),
        (f"base: ROOT/base\nsft: {HUB}", r"sft\.revision to its 40-digit commit"),
        (f"base: ROOT/base\nsft: {{path: {HUB}, revision: main}}", "a branch can move"),
        ("sft: ROOT/sft", r"0 models are the base \(none\)"),
        ("base: ROOT/base\nsft: {path: ROOT/sft, base: true}", "2 models are the base"),
        ("base: ROOT/base\nsft: ROOT/sft\nrl: ROOT/sft", "sft and rl are the same model"),
        ("base: ROOT/base\nsft: {path: ROOT/sft, instructed: maybe}", "must be true or false"),
        ("base: ROOT/base\nsft: {path: ROOT/sft, revision: 123}", "must be text in quotes"),
        ("base: ROOT/base\nsft: {path: ROOT/sft, recipes: rl}", r"sft\.recipes is unknown"),
        ("base: ROOT/base\nx: {path: ROOT/sft, recipe: best}", "is no row of the paper"),
        ("base: ROOT/base\nx: {revision: a}", "give a folder or hub name"),
        ("base: ROOT/base\nbenchmarks: ROOT/sft", "can't name a model"),
        ("base: ROOT/base\na/b: ROOT/sft", "can't name a model"),
    ],
)
def test_bad_files_are_one_message(models: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        reproduce.parse([f"checkpoints={file(models, text)}"])
    assert str(raised.value).startswith("checkpoints=")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    done = call("reproduce", f"checkpoints={tmp_path / 'none.yaml'}")
    assert done.returncode == 2 and done.stderr.startswith("synergy: checkpoints=") and "No such file" in done.stderr


def test_given_models_are_evaluated_and_nothing_is_trained(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = file(models, "q: {path: ROOT/base, base: true}\nsft: ROOT/sft\nx: {path: ROOT/rl, instructed: false}\n")
    request = reproduce.parse([f"checkpoints={given}", "plan=true", f"run.dir={models / 'runs'}"])
    reproduce.action(request, compose.tasks(request.words))
    assert "4 to run" in capsys.readouterr().out
    (task,) = compose.tasks(request.words)
    cfg = checkpoints.configured(task.cfg, list(request.given))
    planned = strategies.stages(cfg)
    assert [(stage.name, stage.kind) for stage in planned] == [
        ("benchmarks", "prepare"), ("eval-base", "evaluate"), ("eval-sft", "evaluate"), ("eval-x", "evaluate"),
    ]  # fmt: skip
    assert [bool(stage.settings["instruction"]) for stage in planned[1:]] == [False, True, False]
    found = resolve(cfg, None, False)
    assert found["sft"].path == (models / "sft").resolve() and len({e.digest for e in found.values()}) == 3
    keys = {step.stage.name: step.key for step in driver_plan.of_config(cfg).steps}
    make_checkpoint(models / "sft", shift=9)
    after = {step.stage.name: step.key for step in driver_plan.of_config(cfg).steps}
    assert after["eval-sft"] != keys["eval-sft"] and after["eval-x"] == keys["eval-x"], "identity is the content"


def test_seeds_make_no_sense_without_training(models: Path) -> None:
    request = reproduce.parse([f"checkpoints={file(models, 'base: ROOT/base')}", "seed=0,1"])
    with pytest.raises(UserError, match="not trained, so they have no seeds"):
        reproduce.action(request, compose.tasks(request.words))


def test_the_report_of_given_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that stands for SFT, and one that stands for no row of the paper."""
    given = checkpoints.read(file(models, "q: {path: ROOT/base, base: true}\nsft: ROOT/sft\nx: ROOT/rl\n"))
    runs = Runs(models / "runs", "checkpoints")
    runs.benchmarks({"One": 4})
    for name, right in (("base", 1), ("sft", 2), ("x", 3)):
        runs.evaluate(name, {"One": 4}, lambda b, level, q, i, run, right=right: (i < right, 7))  # type: ignore[misc]
    (task,) = compose.tasks(["-m", "recipe=checkpoints"])
    made = tables.given(given, Task("checkpoints", "checkpoints", (), task.cfg), runs.plan())
    folder = reproduce_page.write(["table=1", "table=6"], made, {}).parent
    told = json.loads((folder / "report.json").read_text())["tables"]
    ours = {cell["model"]: cell["ours"] for cell in told["table_1"]["cells"] if cell["benchmark"] == "average"}
    assert ours == {"q": 25, "sft": 50}
    assert told["table_6"]["missing"]["rl"] == "none of the given checkpoints"
    assert [cell["ours"] for cell in told["other_models"]["cells"] if cell["benchmark"] == "One"] == [75]

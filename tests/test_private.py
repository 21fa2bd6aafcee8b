"""No secret is written down: not those of the environment, whatever runs, and not those of a config, which is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from quick import RECIPES, Clock, doubles
from quick import todo as double
from test_driver import QUIET, Script, stage, todo
from test_strategies import config

from synergy import compose, stages
from synergy.driver import execute, plan, private, process, state
from synergy.driver.execute import Limits
from synergy.errors import StageFailed, UserError
from synergy.stages import Command

PLANTED = {
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlantedPlanted",
    "WANDB_API_KEY": "0123456789planted0123456789planted012345",
    "VLLM_API_KEY": "planted-vllm-0123456789",
    "JUDGE_KEY": "sk-planted-judge-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/0123456789+planted",
}


def found(root: Path) -> list[tuple[str, str]]:
    """(variable, file) of every planted secret below a folder, in contents and in names."""
    hits = []
    for file in (p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        data = file.read_bytes() + str(file).encode()
        hits += [(name, str(file)) for name, value in PLANTED.items() if value.encode() in data]
    return hits


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/log").write_bytes(b"\xff\0 key=" + PLANTED["JUDGE_KEY"].encode() + b"\0")
    assert found(tmp_path) == [("JUDGE_KEY", str(tmp_path / "a/log"))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_writes_a_secret_of_the_environment(recipe: str, tmp_path: Path, planted: None) -> None:
    with doubles(Clock()):
        made = double(tmp_path / "runs", recipe)
        with state.recording(made, QUIET) as watch:
            execute.run(made, Limits(), watch)
    assert (tmp_path / "runs/state.json").exists() and found(tmp_path) == []


def test_a_child_has_them_and_the_driver_writes_none(
    tmp_path: Path, planted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Script())
    good = stage("one", 'test -n "$HF_TOKEN" && test -n "$JUDGE_KEY" && echo yes > $WORK/result')
    bad = stage("two", "echo OSError: out of luck; exit 1", {"model": "one"})
    made = todo(tmp_path, good, bad)
    with pytest.raises(StageFailed, match="out of luck"), state.recording(made, QUIET) as watch:
        execute.run(made, Limits(), watch)
    names = {p.name for p in tmp_path.rglob("*")}
    assert {"command.sh", "log.txt", "outcome.json", "README.md", "ledger.jsonl", "state.json"} <= names
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("+sft.env.WANDB_API_KEY=planted-1234", r"sft\.env\.WANDB_API_KEY is a secret by its name"),
        ("+rl.env.HF_TOKEN=planted-1234", r"rl\.env\.HF_TOKEN is a secret"),
        ("+evaluate.env.JUDGE_KEY=planted-1234", r"evaluate\.env\.JUDGE_KEY is a secret"),
        ("+sample.env.X=hf_PlantedPlantedPlantedPlanted", r"sample\.env\.X looks like a secret"),
        ("+sft.config.hf_hub_token=planted-1234", r"sft\.config\.hf_hub_token is a secret"),
        ("+sft.config.swanlab_api_key=planted-1234", r"sft\.config\.swanlab_api_key is a secret"),
        ("evaluate.server=['--api-key=planted-1234']", r"evaluate\.server\.0 looks like a secret"),
        ("+sample.engine.hf_token=planted-1234", r"sample\.engine\.hf_token is a secret"),
        ("evaluate.judge.endpoint='http://me:planted-1234@host/v1'", r"evaluate\.judge\.endpoint looks like a secret"),
        ("+rl.verl_add.ray_kwargs.ray_init.runtime_env.env_vars.MY_KEY=planted-1234", r"env_vars\.MY_KEY is a secret"),
        ("+merge.env.X=${oc.env:AWS_SECRET_ACCESS_KEY}", r"merge\.env\.X holds the value of the environment variable AWS_SEC"),
        ("+rl.env.EXTRA='a=${oc.env:WANDB_API_KEY}'", r"rl\.env\.EXTRA holds the value of the environment variable WANDB"),
    ],
)  # fmt: skip
def test_a_config_that_holds_one_is_refused_without_showing_it(
    setting: str, told: str, tmp_path: Path, planted: None
) -> None:
    (task,) = compose.tasks(["recipe=progressive", f"run.dir={tmp_path}/runs", setting])
    with pytest.raises(UserError, match=told) as error:
        plan.of_config(task.cfg)
    text = str(error.value)
    assert "in the environment instead" in text
    assert "planted-1234" not in text and not any(value in text for value in PLANTED.values())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", ["progressive", "model_merging", "ablation/rl_ppo"])
@pytest.mark.parametrize("scale", ["tiny", "qwen2_5_vl_7b"])
def test_the_recipes_hold_none(recipe: str, scale: str, planted: None) -> None:
    private.check(config(recipe, f"scale={scale}", "+sft.env.WANDB_API_KEY=''", "evaluate.judge.key_env=JUDGE_KEY"))


def test_command_sh_has_what_the_stage_adds_and_nothing_inherited(planted: None) -> None:
    command = Command(("true",), {"X": "1"})
    assert "planted" not in process.shell_script(command).lower()
    assert process.environment(command, "m")["HF_TOKEN"] == os.environ["HF_TOKEN"]

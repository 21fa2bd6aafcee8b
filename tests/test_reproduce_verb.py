"""The verb ``reproduce``: its words, the plan behind a table, and recipes that fail or can't run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import call
from test_reproduce import SEVEN, evaluated

from synergy import compose, reproduce, run
from synergy.config import Config
from synergy.driver import plan as driver_plan
from synergy.driver.plan import Plan
from synergy.errors import StageFailed, UserError
from synergy.report import specs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to reproduce"),
        (["table=4"], "Table 4: its numbers are not in the paper's data"),
        (["table=9"], "no such table or figure"),
        (["figure=2"], "no such table or figure"),
        (["table=6", "recipe=sft"], "leave recipe= out"),
        (["table=6", "plan=maybe"], "true shows what would run"),
        (["checkpoints=a", "checkpoints=b"], "takes one file"),
        (["table="], "table= names nothing"),
        (["checkpoints="], "checkpoints= names nothing"),
    ],
)
def test_words_that_ask_for_nothing_known(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reproduce.parse(words)


def test_help_and_a_wrong_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), (["table=4"], 2)):
        monkeypatch.setattr("sys.argv", ["synergy reproduce", *words])
        assert reproduce.main() == code
    told = capsys.readouterr()
    assert "synergy reproduce table=6" in told.out and told.err.startswith("synergy: table=4")


def test_words() -> None:
    assert reproduce.parse(["table=2,1", "figure=1", "seed=0,1"]).names == ["table=1", "table=2", "figure=1"]
    assert reproduce.parse(["all"]).names == list(specs.SPECS)
    request = reproduce.parse(["table=3", "plan=true", "scale=tiny", "-m"])
    assert request.only_plan and list(request.words) == ["-m", "recipe=rl,ablation/rl_without_easiest", "scale=tiny"]


def test_several_values_of_anything_but_the_seed_are_refused() -> None:
    request = reproduce.parse(["table=7", "data.limit=5,6"])
    with pytest.raises(UserError, match=r"only seed may have several values here, not data\.limit=5"):
        reproduce.action(request, compose.tasks(request.words))


def test_the_plan_of_table_6_shares_stages(tmp_path: Path) -> None:
    """In a process of its own, as a user calls it; nothing is written."""
    done = call("reproduce", "table=6", "plan=true", "scale=tiny", f"run.dir={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("71 stages in 7 jobs, 39 of them distinct: sharing saves 32")
    assert sum(line.startswith("eval-base") and "all 7" in line for line in lines) == 1
    assert not (tmp_path / "new").exists()


def test_a_recipe_that_the_scale_lacks_stops_no_other(tmp_path: Path) -> None:
    done = call("reproduce", "table=1", "plan=true", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "ablation/sft_s1: not run: data.train=s1.jsonl: the lab's digits" in done.stdout
    assert "ablation/sft_s1_1: not run: " in done.stdout and "7 stages in 2 jobs, 5 of them distinct" in done.stdout


def test_what_builds_on_a_failed_stage_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table 1 with base and SFT finished but for a stage of SFT that fails: base is reported, SFT told."""
    made = {one.recipe: one for one in evaluated(tmp_path)}
    plans = {recipe: one.plan for recipe, one in made.items()}
    pythons = {"vlmevalkit": "python", "vllm": "python"}
    broken = replace(made["sft"].step, action="run", why="not made yet", entry=None)
    for recipe in ("sft", "ablation/sft_s1_1"):
        plans[recipe] = replace(plans[recipe], steps=[*plans["base"].steps, broken], pythons=pythons)
    table = [one for recipe, one in made.items() if recipe in ("base", "ablation/sft_s1_1", "sft")]
    tasks = [replace(one.task, cfg=replace(SEVEN, recipe={"strategy": one.recipe})) for one in table]
    monkeypatch.setattr(driver_plan, "of_config", lambda cfg, fetch=False: plans[cfg.recipe["strategy"]])
    monkeypatch.setattr(run, "preflight", lambda tasks, plans: None)
    begun = []

    def finish(cfg: Config, todo: Plan, server: object, plans: object) -> None:
        begun.append(cfg.recipe["strategy"])
        raise StageFailed("stage sft broke")

    monkeypatch.setattr(run, "finish", finish)
    request = reproduce.Request(["table=1"], [], False, [])
    with pytest.raises(
        StageFailed, match=r"some recipes could not be run\. .*sft: it builds on stage eval-sft, which failed"
    ):
        reproduce.action(request, tasks)
    assert begun == ["ablation/sft_s1_1"]
    (page,) = re.findall(r"report: (\S+)", capsys.readouterr().out)
    document = json.loads((Path(page).parent / "report.json").read_text())
    assert [model["model"] for model in document["models"]] == ["base"]
    assert document["not_run"]["ablation/sft_s1_1"] == "stage sft broke"

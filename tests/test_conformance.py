"""One suite that every stage kind passes: what the driver relies on, whatever framework stands behind."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_checkpoint
from test_strategies import RECIPES, config

from synergy import environments, paths, stages, strategies
from synergy.data import records, writers
from synergy.data.records import Record
from synergy.driver import identity, process
from synergy.errors import StageFailed, UserError
from synergy.stages import KINDS, Job, Stage

INSTRUCTION = "Think."


def planned(kind: str) -> Stage:
    """A stage of this kind as a real recipe has it."""
    recipe = "model_merging" if kind == "merge" else "progressive"
    return next(stage for stage in strategies.stages(config(recipe)) if stage.kind == kind)


def pythons() -> dict[str, str]:
    return {name: str(environments.locate(name)) for name in environments.FRAMEWORKS}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Small inputs for every role: a checkpoint, records, SFT rows, an RL order, benchmarks, pass counts."""
    data = tmp_path / "data"
    from PIL import Image

    (data / "records").mkdir(parents=True)
    Image.new("RGB", (140, 28)).save(data / "records/x.png")
    found = [
        Record(f"q{i}", "How many?", "3", ("x.png",), trace="<think>3</think>\\boxed{3}", level=1) for i in range(32)
    ]
    records.write(data / "records/train.jsonl", found)
    rows = [(record, str(record.trace), INSTRUCTION) for record in found]
    writers.llamafactory(data / "sft", {"train": rows, "validation": rows})
    turns = [writers.Turn(record) for record in found]
    writers.verl(data / "rl/train.parquet", turns, data / "records", INSTRUCTION, None)
    (data / "order.json").write_text(json.dumps([record.id for record in found]))
    (data / "passes.jsonl").write_text("".join(json.dumps({"id": r.id, "n": 8, "passes": 0}) + "\n" for r in found))
    writers.vlmevalkit(data / "B.tsv", found, data / "records")
    (data / "benchmarks.json").write_text(json.dumps([{"name": "B", "tsv": "B.tsv", "kind": "open"}]))
    model = make_checkpoint(tmp_path / "model")
    return {
        "base": model,
        "model": model,
        "sft": make_checkpoint(tmp_path / "sft", shift=0.1),
        "rl": make_checkpoint(tmp_path / "rl", shift=0.01),
        **dict.fromkeys(["data", "order", "media", "benchmarks", "source", "passes_0"], data),
    }


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path, inputs: dict[str, Path]) -> Job:
    stage = planned(request.param)
    made = Job(stage, "k" * 64, tmp_path / "stage", tmp_path / "stage/attempt-1", inputs, pythons())
    made.attempt.mkdir(parents=True)
    made.work.mkdir()
    return made


every_kind = pytest.mark.parametrize("job", KINDS, indirect=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_of_every_recipe_is_classified(recipe: str) -> None:
    for stage in strategies.stages(config(recipe)):
        kind = stages.kind(stage.kind)
        assert set(stage.settings) <= kind.IDENTITY | kind.RUNTIME, stage.name
        parts = identity.identity(stage, dict.fromkeys(stage.inputs, "0"), {})
        assert json.loads(identity.canonical(parts)) == parts, "identity is plain JSON"


@pytest.mark.parametrize("name", KINDS)
def test_run_time_settings_do_not_change_the_key(name: str) -> None:
    stage = planned(name)
    kind = stages.kind(name)
    before = identity.key(identity.identity(stage, {}, {}))
    for setting in kind.RUNTIME & set(stage.settings):
        changed = replace(stage, settings={**stage.settings, setting: "other"})
        assert identity.key(identity.identity(changed, {}, {})) == before
    for setting in kind.IDENTITY & set(stage.settings) - {"config", "verl", "verl_add"}:
        changed = replace(stage, settings={**stage.settings, setting: "other"})
        assert identity.key(identity.identity(changed, {}, {})) != before, setting


@pytest.mark.parametrize("name", KINDS)
def test_frameworks_are_known_and_versions_enter_the_key(name: str) -> None:
    kind = stages.kind(name)
    assert set(kind.FRAMEWORKS) <= set(environments.FRAMEWORKS)
    stage = planned(name)
    if kind.PACKAGES:
        keys = {identity.key(identity.identity(stage, {}, {kind.PACKAGES[0]: v})) for v in ("1", "2")}
        assert len(keys) == 2


@every_kind
def test_a_fresh_stage_has_nothing_to_resume_or_tell(job: Job) -> None:
    kind = stages.kind(job.stage.kind)
    assert kind.resume_point(job) is None
    seen = kind.progress(job)
    assert seen is None or seen.done == 0


@every_kind
def test_the_command_is_whole_and_written_only_below_the_stage(job: Job, tmp_path: Path) -> None:
    before = {p for p in tmp_path.rglob("*") if job.folder not in p.parents}
    command = stages.kind(job.stage.kind).command(job)
    assert command is not None
    assert Path(command.argv[0]).is_absolute()
    assert all(isinstance(word, str) for word in (*command.argv, *command.env.values()))
    assert {p for p in tmp_path.rglob("*") if job.folder not in p.parents} == before
    assert list(job.attempt.iterdir()), "the native config lies in the attempt's folder"
    script = process.shell_script(command)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@every_kind
def test_nothing_is_published_from_nothing(job: Job, tmp_path: Path) -> None:
    kind = stages.kind(job.stage.kind)
    kind.command(job)
    with pytest.raises((StageFailed, UserError, OSError)):
        kind.collect(job, tmp_path / "out")


def test_a_response_may_hold_any_end_of_a_line(tmp_path: Path) -> None:
    """JSON keeps U+2028 and U+0085, at which Python's splitlines() splits."""
    job = Job(planned("evaluate"), "k", tmp_path, tmp_path / "attempt-1", {}, {})
    (job.work / "out").mkdir(parents=True)
    row = {"benchmark": "B", "correct": True, "tokens": 3, "response": "a\u2028b\x85c"}
    (job.work / "out/results.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert stages.kind("evaluate").collect(job, tmp_path / "output")["answers"] == 1


def test_the_driver_imports_no_framework() -> None:
    program = (
        "import sys; sys.argv = ['plan', 'recipe=progressive']\n"
        "from synergy import plan, run, doctor, cli\n"
        "import synergy.driver.execute, synergy.driver.externals\n"
        "from synergy import stages\n"
        "for name in stages.KINDS: stages.kind(name)\n"
        "plan.main()\n"
        "heavy = {'torch', 'transformers', 'vllm', 'verl', 'llamafactory', 'ray', 'vlmeval', 'matplotlib', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    python = environments.locate("verl")
    env = {**os.environ, "PYTHONPATH": str(paths.PACKAGE.parent)}
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "rl-3" in done.stdout

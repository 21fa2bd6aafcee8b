"""What was damaged, swapped or changed is told by file and never trained on: real checkpoints (the tiny base model, in shards),
the real hand-off, plan and driver; the frameworks' processes alone are shell scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_critic import saved
from test_driver import QUIET, Script
from test_strategies import config

from synergy import environments, lab, stages, strategies
from synergy.driver import checkpoint, execute, handoff, identity, plan, verify
from synergy.driver.execute import Limits
from synergy.driver.externals import External
from synergy.driver.plan import Plan, Workspace
from synergy.errors import StageFailed, UserError
from synergy.stages import Job, Stage, rl

TRAINED: list[str] = []


class Trainer(Script):
    """Adds ``value`` to one tensor of its input model and publishes it as every training stage does."""

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        TRAINED.append(job.stage.name)
        model, product = job.inputs["model"], job.work / "out"
        shutil.copytree(model, product, ignore=shutil.ignore_patterns("README.md", "MANIFEST.json", "levels.json"))
        file = checkpoint.files(product)[0]
        values = load_file(file)
        name = next(name for name in values if name.endswith("q_proj.weight"))
        save_file({**values, name: values[name] + np.float32(job.settings["value"])}, file, {"format": "pt"})
        return dict(handoff.publish(product, job.inputs["base"], model, out))


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "kind", lambda name: Trainer())
    TRAINED.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model in two shards with an index."""
    folder = tmp_path_factory.mktemp("model") / "base"
    shutil.copytree(lab.BASE, folder)
    shard(folder)
    return folder


def shard(folder: Path) -> None:
    values = load_file(folder / checkpoint.SINGLE)
    names = sorted(values, key=lambda name: not name.startswith("model."))
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: values[name] for name in inside}, folder / file, {"format": "pt"})
    (folder / checkpoint.SINGLE).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / checkpoint.INDEX).write_text(json.dumps(index))


def chain(first: float = 0.5, second: float = 0.25) -> list[Stage]:
    """Two training stages, and an SFT after them."""
    one = Stage("sft", "sft", {"script": "true", "value": first}, {"model": "base", "base": "base"})
    two = Stage("rl", "rl", {"script": "true", "value": second}, {"model": "sft", "base": "base"})
    three = Stage("more", "sft", {"script": "true", "value": 1.0}, {"model": "rl", "base": "base"})
    return [one, two, three]


def todo(root: Path, base: Path, *planned: Stage) -> Plan:
    root.mkdir(exist_ok=True)
    outside = {"base": External(base, identity.digest(base))}
    return Plan("test", plan.make(list(planned), outside, Workspace(root), {}), Workspace(root), {})


def run(made: Plan) -> list[str]:
    """Runs it; the names of the stages that were trained."""
    TRAINED.clear()
    execute.run(made, Limits(), QUIET)
    return list(TRAINED)


def flip(folder: Path) -> str:
    file = folder / "model-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    return f"{file.name} has another content"


def truncate(folder: Path) -> str:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])
    return f"{file.name} has another content"


def unindex(folder: Path) -> str:
    file = folder / checkpoint.INDEX
    index = json.loads(file.read_text())
    index["weight_map"].pop(next(name for name in index["weight_map"] if "layers.1" in name))
    file.write_text(json.dumps(index))
    return f"{file.name} has another content"


def foreign_tokenizer(folder: Path) -> str:
    """Another model's: as large, with other words."""
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    words = found["model"]["vocab"]
    found["model"]["vocab"] = dict(zip(words, reversed(list(words.values())), strict=True))
    file.write_text(json.dumps(found))
    return "tokenizer.json has another content"


def no_tokenizer(folder: Path) -> str:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    return "tokenizer.json is gone"


HARMS: list[Callable[[Path], str]] = [flip, truncate, unindex, foreign_tokenizer, no_tokenizer]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_result_is_told_by_the_plan_and_made_anew(tmp_path: Path, base: Path, harm: Any) -> None:
    one, two, three = chain()
    assert run(todo(tmp_path, base, one)) == ["sft"]
    output = todo(tmp_path, base, one).steps[0].folder / "output"
    words = harm(output)
    steps = todo(tmp_path, base, one, two, three).steps
    assert [step.action for step in steps] == ["run", "run", "run"]
    assert words in steps[0].why and "put it back, or it is made anew" in steps[0].why
    assert run(todo(tmp_path, base, one, two)) == ["sft", "rl"]
    verify.model(output)


@pytest.mark.parametrize("harm", HARMS)
def test_a_result_damaged_after_the_plan_is_never_handed_on(tmp_path: Path, base: Path, harm: Any) -> None:
    one, two, _ = chain()
    run(todo(tmp_path, base, one))
    made = todo(tmp_path, base, one, two)
    words = harm(made.steps[0].folder / "output")
    with pytest.raises(StageFailed) as error:
        run(made)
    assert not TRAINED and words in str(error.value)
    assert "put it back, or run again: what is made from it is made anew" in str(error.value)


def test_a_base_model_changed_after_the_plan_is_never_handed_on(tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    made = todo(tmp_path / "runs", tmp_path / "base", chain()[0])
    flip(tmp_path / "base")
    with pytest.raises(
        StageFailed, match=r"base, model of stage sft, was changed \(its content is not what the plan saw"
    ):
        run(made)
    assert not TRAINED


def test_two_swapped_results_are_both_told(tmp_path: Path, base: Path) -> None:
    one, two, three = chain()
    run(todo(tmp_path, base, one, two))
    made = todo(tmp_path, base, one, two, three)
    first, second = (step.folder / "output" for step in made.steps[:2])
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(StageFailed, match=r"model-00001-of-00002\.safetensors has another content"):
        run(made)
    assert not TRAINED
    steps = todo(tmp_path, base, one, two).steps
    assert "model-00001-of-00002.safetensors has another content" in steps[0].why and steps[1].action == "run"


def nan(folder: Path) -> None:
    file = checkpoint.files(folder)[0]
    values = load_file(file)
    values[next(iter(values))].flat[3] = np.nan
    save_file(values, file, {"format": "pt"})


def grown_tokenizer(folder: Path) -> None:
    """As many words as the model has, and an added token that it has no row for."""
    found = json.loads((folder / "tokenizer.json").read_text())
    rows = checkpoint.read(folder)[verify.EMBEDDING].shape[0]
    found["added_tokens"].append({**found["added_tokens"][-1], "id": rows, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(found))


def one_token(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')


def no_image_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    found = json.loads(text)
    found["added_tokens"] = found["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(found))


def untied(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    told["tie_word_embeddings"] = False
    told.get("text_config", {}).pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(told))


def two_models(folder: Path) -> None:
    shutil.copy2(lab.BASE / checkpoint.SINGLE, folder / checkpoint.SINGLE)


def lost_tensor(folder: Path) -> None:
    file = folder / checkpoint.INDEX
    index = json.loads(file.read_text())
    index["weight_map"]["model.layers.7.input_layernorm.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, r"model-00002-of-00002\.safetensors: tensor \S+ is cut short.*again"),
        (unindex, r"index\.json: it has no entry for \S+layers\.1\S+ of model-0000\S+, which .* random.*again"),
        (lost_tensor, r"model-00001-of-00002\.safetensors: it lacks model\.layers\.7\S+, which .*again"),
        (no_tokenizer, r"tokenizer\.json is missing: .* put back"),
        (one_token, r"tokenizer\.json holds 1 tokens; put back"),
        (grown_tokenizer, r"tokenizer\.json: its largest id is \d+, and .* has \d+ rows.* Put back"),
        (no_image_token, r"tokenizer\.json has no token of id \d+, .*_token_id.* Put back"),
        (nan, r"safetensors: \S+ holds NaN or infinity; .*again"),
        (untied, r"no tensor lm_head\.weight, though \S+config\.json .* mend config\.json"),
        (two_models, r"holds both model\.safetensors and model\.safetensors\.index\.json; remove"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not a readable config .*again"),
        (lambda folder: (folder / checkpoint.INDEX).write_text("{}"), r"index\.json: not a readable index .*again"),
    ],
)
def test_a_damaged_model_of_the_users_is_told_by_file(tmp_path: Path, base: Path, harm: Any, words: str) -> None:
    shutil.copytree(base, tmp_path / "mine")
    verify.model(tmp_path / "mine")
    harm(tmp_path / "mine")
    with pytest.raises(UserError, match=words) as error:
        verify.model(tmp_path / "mine")
    assert "\n" not in str(error.value)


def test_another_models_chat_or_processor_is_told(tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "mine")
    verify.same_sidecars(tmp_path / "mine", base)
    for name in ("chat_template.json", "preprocessor_config.json"):
        (tmp_path / "mine" / name).write_text("{}")
        with pytest.raises(UserError, match=rf"mine/{name} is not that of the base model .*; put that one"):
            verify.same_sidecars(tmp_path / "mine", base)
        shutil.copy2(base / name, tmp_path / "mine" / name)


def test_a_tokenizer_that_the_framework_changed_is_not_published(tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "made")
    file = tmp_path / "made/tokenizer.json"
    found = json.loads(file.read_text())
    found["added_tokens"].append({**found["added_tokens"][-1], "id": 479, "content": "<think>"})
    file.write_text(json.dumps(found))
    with pytest.raises(
        UserError, match=r"tokenizer\.json: 1 tokens are not the base model's .*'<think>'; train without"
    ):
        handoff.publish(tmp_path / "made", base, base, tmp_path / "out")


def test_an_edited_recipe_and_reordered_stages_run_anew_from_there(tmp_path: Path, base: Path) -> None:
    assert run(todo(tmp_path, base, *chain())) == ["sft", "rl", "more"]
    edited = todo(tmp_path, base, *chain(second=0.75)).steps
    assert [step.action for step in edited] == ["reuse", "run", "run"]
    assert (
        edited[1].why == "changed: settings.value: 0.25 -> 0.75" and edited[2].why == "builds on rl, which is made now"
    )
    one, two, three = chain()
    order = [replace(two, inputs={**two.inputs, "model": "base"}), replace(one, inputs={**one.inputs, "model": "rl"})]
    swapped = todo(tmp_path, base, *order, replace(three, inputs={**three.inputs, "model": "sft"})).steps
    assert [step.action for step in swapped] == ["run", "run", "run"]
    assert "changed: inputs.model" in swapped[0].why
    assert run(todo(tmp_path, base, *chain(second=0.75))) == ["rl", "more"]
    assert [step.action for step in todo(tmp_path, base, *chain()).steps] == ["reuse"] * 3, (
        "the old results are there still"
    )


def parts(*overrides: str, versions: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Stage -> its identity, of the real recipe."""
    return {
        stage.name: identity.identity(stage, {}, versions or {})
        for stage in strategies.stages(config("two_stage", *overrides))
    }


def test_a_changed_reward_function_is_another_rl_stage_and_no_other_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    file = tmp_path / "mine.py"
    file.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):\n    return 1\n")
    before = parts(f"reward.path={file}")
    file.write_text(file.read_text().replace("return 1", "return 0"))
    after = parts(f"reward.path={file}")
    assert before["sft"] == after["sft"]
    (rl_stage,) = (stage.name for stage in strategies.stages(config("two_stage")) if stage.kind == "rl")
    (told,) = identity.differences(before[rl_stage], after[rl_stage])
    assert told.startswith("own_reward.source: ")


def test_another_framework_version_is_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for stage in strategies.stages(config("two_stage")):
        kind, seen = stages.kind(stage.kind), []
        pythons = {name: f"/{name}/python" for name in kind.FRAMEWORKS}
        for version in ("1.0", "1.0.1"):
            there = dict.fromkeys(kind.PACKAGES, version)
            monkeypatch.setattr(environments, "versions", lambda python, there=there: there)
            seen.append(identity.identity(stage, {}, plan._versions(kind, pythons)))
        told = identity.differences(*seen)
        assert len(told) == len(kind.PACKAGES)
        assert all(line.startswith("packages.") and line.endswith('"1.0" -> "1.0.1"') for line in told)


def test_verl_does_not_go_on_from_the_shards_of_other_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (stage,) = (s for s in strategies.stages(config("rl")) if s.kind == "rl")
    assert parts() == parts("rl.verl.trainer.n_gpus_per_node=2"), (
        "as many GPUs as there are: not what the result is known by"
    )
    made = Job(stage, "k" * 64, tmp_path, tmp_path / "attempt-2", {}, {})
    saved(made.work, 5, ("actor",), world=2)
    with pytest.raises(
        UserError, match=r"global_step_5 was written by 2 processes, .* with 1: set rl\.verl\.trainer.*delete"
    ):
        rl._prepare_resume(made, 5)


def test_a_restart_of_verl_steps_over_damage_and_forgets_no_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (stage,) = (s for s in strategies.stages(config("rl")) if s.kind == "rl")
    made = Job(stage, "k" * 64, tmp_path, tmp_path / "attempt-2", {}, {})
    for step in (1, 2, 3, 4):
        saved(made.work, step, ("actor",), world=1)
    newest = made.work / "checkpoints/global_step_4/actor/model_world_size_1_rank_0.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert rl.resume_point(made) == 3
    rl._prepare_resume(made, 3)
    assert sorted(p.name for p in (made.work / "checkpoints").glob("global_step_*")) == [
        "global_step_2",
        "global_step_3",
    ]
    assert (made.work / "damaged-global_step_4-attempt-2").is_dir()
    assert rl.resume_point(made) == 3
    (made.work / "checkpoints" / rl.TRACKER).write_text("")
    assert rl.resume_point(made) == 3, "a torn tracker was being written, after all that it tells of"

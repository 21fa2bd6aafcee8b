"""Merging: real mergekit on the tiny model, what is refused before it, what is caught after it, and the look at the parents."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_checkpoint, save_tensors
from hypothesis import given
from hypothesis import strategies as st

from merge import compare
from synergy import environments, lab, stages
from synergy.driver import checkpoint, handoff, process
from synergy.driver.values import doubles, side_by_side
from synergy.errors import StageFailed, UserError
from synergy.stages import Job, Stage, merge, merge_check

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.8},
    "slerp": {},
    "ties": {"density": 0.3},
    "dare_ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
}
STORED = {"slerp": ("BF16", True), "ties": ("BF16", False), "dare_ties": ("F16", True)}
"""Method -> dtype of its parents, and whether their head is tied; else float32 and tied."""
SKIPPED = [(method, left) for method in METHODS for left in ("base", "missing", "nan")]
SKIPPED += [(method, left) for method in ("linear", "task_arithmetic", "slerp") for left in ("sft", "rl")]
"""With signs and dropping, a parent's own value can be right."""
FROZEN = "visual.patch_embed.proj.weight"
ONE_BY_ONE = """
import sys
from mergekit.scripts.run_yaml import main
for line in sys.stdin.read().splitlines():
    main(line.split("\\t"), standalone_mode=False)
"""


def settings(method: str, ratio: float = 0.25, dtype: str = "float32") -> dict[str, Any]:
    common = {"ratio": ratio, "dtype": dtype, "seed": 3, "options": [], "env": {"OMP_NUM_THREADS": "1"}}
    return {"method": method, "parameters": METHODS[method], **common}


def values(folder: Path) -> dict[str, np.ndarray]:
    found = checkpoint.read(folder).items()
    return {name: doubles(b"".join(checkpoint.chunks(t)), t.dtype).reshape(t.shape) for name, t in found}


def write(folder: Path, tensors: Mapping[str, np.ndarray], dtype: str, tied: bool) -> Path:
    """The lab's base model with other weights."""
    shutil.copytree(lab.BASE, folder)
    (folder / "model.safetensors").unlink()
    raw = {n: checkpoint.cast(v.astype("<f4").tobytes(), "F32", dtype) for n, v in tensors.items()}
    kind = checkpoint.FLOATS[dtype]
    shaped = {name: np.frombuffer(data, kind).reshape(tensors[name].shape) for name, data in raw.items()}
    save_tensors(folder / "model.safetensors", shaped, dtype)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    return folder


def family(folder: Path, dtype: str = "F32", tied: bool = True) -> dict[str, Path]:
    """Base, SFT and RL model: all tensors differ, but one, as a frozen one does; untied: with a head of its own."""
    rng, tensors = np.random.default_rng(0), values(lab.BASE)
    if not tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1]
    found = {"base": write(folder / "base", tensors, dtype, tied)}
    for role, size in (("sft", 1e-1), ("rl", 3e-2)):
        moved = {n: v if n == FROZEN else v + size * rng.normal(size=v.shape) for n, v in tensors.items()}
        found[role] = write(folder / role, moved, dtype, tied)
    return found


def job(folder: Path, inputs: Mapping[str, Path], given: Mapping[str, Any]) -> Job:
    stage = Stage("merge-0.25", "merge", given, {role: role for role in merge.ROLES})
    made = Job(
        stage, "k" * 64, folder, folder / "attempt-1", inputs, {"mergekit": str(environments.locate("mergekit"))}
    )
    made.attempt.mkdir(parents=True)
    made.work.mkdir()
    return made


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Every method by real mergekit in one process (imports cost the most): name -> job, its merge done.

    The product of task_arithmetic is in several files.
    """
    root = tmp_path_factory.mktemp("merged")
    kinds = {("F32", True), *STORED.values()}
    families = {kind: family(root / f"{kind[0]}-{kind[1]}", *kind) for kind in kinds}
    plain = families["F32", True]
    jobs = {m: job(root / m, families[STORED[m]] if m in STORED else plain, settings(m)) for m in METHODS}
    sharded = {**settings("task_arithmetic"), "options": ["--out-shard-size=300K"]}
    jobs["task_arithmetic"] = job(root / "sharded", plain, sharded)
    commands = [stages.kind("merge").command(made) for made in jobs.values()]
    lines = ["\t".join(command.argv[1:]) for command in commands if command is not None]
    python, env = environments.locate("mergekit"), {**os.environ, **(commands[0].env if commands[0] else {})}
    ran = subprocess.run(
        [python, "-c", ONE_BY_ONE], input="\n".join(lines), text=True, capture_output=True, env=env, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return jobs


@pytest.mark.parametrize("method", METHODS)
def test_real_mergekit_merges_every_tensor_of_the_vision_language_model(merged: dict[str, Job], method: str) -> None:
    """Fails when a mergekit no longer knows a tensor of Qwen2.5-VL (visual.*, tied or untied head)."""
    made = merged[method]
    out = made.folder / "collected"
    figures = merge.collect(made, out)
    count = len(checkpoint.read(made.inputs["base"]))
    assert figures["verified"] == count and figures["changed_tensors"] == count - 1, "all but the frozen one"
    assert {t.dtype for t in checkpoint.read(out).values()} == {STORED.get(method, ("F32",))[0]}
    assert (len(checkpoint.files(out)) > 9) == (method == "task_arithmetic")
    stored = [name for file in checkpoint.files(out) for name in checkpoint.header(file)[0] if name != "__metadata__"]
    assert sorted(stored) == sorted(checkpoint.read(out)), "no tensor is there twice"
    told = json.loads((out / "parents.json").read_text())["modules"]
    assert {"projector", "vision block 1", "attention 3", "all"} <= {row["module"] for row in told}
    assert ("head" in {row["module"] for row in told}) == (method == "ties")
    assert "vision block 1" in (made.attempt / "parents.txt").read_text()
    assert (out / "tokenizer.json").read_bytes() == (lab.BASE / "tokenizer.json").read_bytes()


def test_the_linear_merge_is_the_average_and_comes_from_a_script_that_runs_by_hand(tmp_path: Path) -> None:
    inputs = family(tmp_path)
    made = job(tmp_path / "stage", inputs, settings("linear"))
    command = merge.command(made)
    script = made.attempt / "command.sh"
    script.write_text(process.shell_script(command))
    with (made.attempt / "log.txt").open("w") as log:
        subprocess.run(["bash", str(script)], check=True, stdout=log, stderr=subprocess.STDOUT)
    seen = merge.progress(made)
    assert seen is not None and seen.done == seen.total > 0
    figures = merge.collect(made, tmp_path / "out")
    assert 0 < figures["largest_error"] < 1e-6 and figures["sign_conflict"] == pytest.approx(0.5, abs=0.01)
    sft, rl, out = (values(folder) for folder in (inputs["sft"], inputs["rl"], tmp_path / "out"))
    assert all(np.allclose(out[n], 0.25 * sft[n] + 0.75 * rl[n], atol=1e-6) for n in sft)
    config = yaml.safe_load((made.attempt / "config.yaml").read_text())
    assert config["merge_method"] == "linear" and config["out_dtype"] == "float32"


@pytest.mark.parametrize(("method", "left"), SKIPPED)
def test_a_tensor_that_a_merger_skips_is_caught(merged: dict[str, Job], tmp_path: Path, method: str, left: str) -> None:
    made = merged[method]
    product, name = tmp_path / "product", "visual.merger.ln_q.weight"
    tensors = values(made.work / "out")
    if left == "missing":
        tensors.pop(name)
    elif left == "nan":
        tensors[name][0] = np.nan
    else:
        tensors[name] = values(made.inputs[left])[name]
    write(product, tensors, *STORED.get(method, ("F32", True)))
    models = merge.models(made.inputs)
    with pytest.raises(StageFailed, match=name if left != "nan" else "NaN|visual.merger.ln_q"):
        merge_check.verify(checkpoint.read(product), models, made.settings)
        handoff.publish(product, made.inputs["base"], made.inputs["rl"], tmp_path / "out")


@given(st.sampled_from(["F32", "BF16", "F16"]), st.floats(0.01, 0.99), st.integers(0, 99), st.floats(1e-6, 1.0))
def test_correct_rounding_is_never_called_wrong(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, ratio: float, seed: int, size: float
) -> None:
    folder, rng = tmp_path_factory.mktemp("rounding"), np.random.default_rng(seed)
    base = rng.normal(size=(8, 8))
    found = {
        "base": base,
        "sft": base + size * rng.normal(size=(8, 8)),
        "rl": base + size / 30 * rng.normal(size=(8, 8)),
    }
    for role, value in found.items():
        raw = checkpoint.cast(value.astype("<f4").tobytes(), "F32", dtype)
        save_tensors(folder / f"{role}.safetensors", {"w": np.frombuffer(raw, checkpoint.FLOATS[dtype])}, dtype)
        (folder / role).mkdir()
        shutil.move(folder / f"{role}.safetensors", folder / role / "model.safetensors")
    models = {role: checkpoint.read(folder / role) for role in found}
    ((_, sft, rl),) = side_by_side([tensors["w"] for tensors in models.values()])
    mixed = np.float32(ratio) * sft.astype("f4") + np.float32(1 - ratio) * rl.astype("f4")
    raw = checkpoint.cast(mixed.astype("<f4").tobytes(), "F32", dtype)
    (folder / "out").mkdir()
    save_tensors(folder / "out/model.safetensors", {"w": np.frombuffer(raw, checkpoint.FLOATS[dtype])}, dtype)
    given_ = {"method": "linear", "parameters": {}, "ratio": ratio, "dtype": "float32"}
    merge_check.verify(checkpoint.read(folder / "out"), models, given_)
    for method in ("slerp", "ties"):
        parameters = {"density": 1.0} if method == "ties" else {}
        merge_check.verify(
            checkpoint.read(folder / "out"), models, {**given_, "method": method, "parameters": parameters}
        )


@pytest.mark.parametrize("odd", ["name", "shape", "architecture", "dtype"])
def test_parents_of_another_architecture_are_refused_before_the_merge(tmp_path: Path, odd: str) -> None:
    names = ("visual.blocks.0.weight", "model.layers.0.weight", "model.layers.7.weight")
    inputs = {role: make_checkpoint(tmp_path / role) for role in merge.ROLES}
    if odd == "name":
        make_checkpoint(inputs["rl"], names=names)
    elif odd == "architecture":
        (inputs["rl"] / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "tie_word_embeddings": True}))
    else:
        kept = {name: t.shape for name, t in checkpoint.read(inputs["rl"]).items()}
        kind, label = ("<i4", "I32") if odd == "dtype" else ("<f4", "F32")
        shapes = {n: (s if odd == "dtype" else s[::-1]) for n, s in kept.items()}
        save_tensors(inputs["rl"] / "model.safetensors", {n: np.ones(s, kind) for n, s in shapes.items()}, label)
    with pytest.raises(UserError, match=r"rl"):
        merge.command(job(tmp_path / "stage", inputs, settings("linear")))
    assert not (tmp_path / "stage/attempt-1/config.yaml").exists()


def test_models_under_run_time_names_go_in_as_copies_under_published_names(tmp_path: Path) -> None:
    hybrid = ("model.visual.blocks.0.weight", "model.language_model.layers.0.weight")
    inputs = {role: make_checkpoint(tmp_path / role, names=hybrid) for role in merge.ROLES}
    before = (inputs["sft"] / "model.safetensors").read_bytes()
    made = job(tmp_path / "stage", inputs, settings("linear"))
    merge.command(made)
    config = yaml.safe_load((made.attempt / "config.yaml").read_text())
    stored = {t.stored for t in checkpoint.read(Path(config["models"][0]["model"])).values()}
    assert stored == {"visual.blocks.0.weight", "model.layers.0.weight"}
    assert (inputs["sft"] / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "average"}, "one of: linear"),
        ({"parameters": {"densty": 0.5}}, r"parameters\.densty"),
        ({"method": "ties", "parameters": {}}, "density"),
        ({"method": "dare_ties", "parameters": {"density": 1.5}}, "density"),
        ({"method": "ties", "parameters": {"density": [0.1, 0.9]}}, "one number"),
        ({"method": "task_arithmetic", "parameters": {"lambda": 0}}, "above 0"),
        ({"ratio": 1.0}, "the merge is a parent"),
        ({"dtype": "int8"}, r"merge\.dtype"),
    ],
)
def test_settings_that_mergekit_would_misread_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        merge.check(Stage("merge", "merge", {**settings("linear"), **change}), {})


def test_the_look_at_the_parents_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "visual.merger.ln_q.weight")
    base = np.zeros((1, 4), "<f4")
    sft = [np.array([[3, 4, 0, 0]], "<f4"), base, base]
    rl = [np.array([[1, -1, 1, 0]], "<f4"), np.array([[0, 0, 0, 2]], "<f4"), base]
    for role, tensors in (("base", [base] * 3), ("sft", sft), ("rl", rl)):
        make_checkpoint(tmp_path / role)
        save_tensors(tmp_path / role / "model.safetensors", dict(zip(names, tensors, strict=True)))
    argv = [str(tmp_path / role) for role in merge.ROLES]
    assert compare.main([*argv, "--json", str(tmp_path / "c.json")]) == 0
    rows = {row["module"]: row for row in json.loads((tmp_path / "c.json").read_text())["modules"]}
    first = rows["mlp 0"]
    assert (first["delta_sft"], first["delta_rl"]) == (5, pytest.approx(3**0.5))
    assert first["delta_ratio"] == pytest.approx(5 / 3**0.5) and first["cosine"] == pytest.approx(-1 / (5 * 3**0.5))
    assert first["sign_conflict"] == 0.5 and first["changed_rl"] == 0.75
    assert rows["mlp 1"]["delta_ratio"] == 0 and rows["mlp 1"]["cosine"] is None
    assert rows["projector"]["sign_conflict"] is None and rows["projector"]["delta_ratio"] is None
    assert rows["mlp"]["delta_rl"] == pytest.approx(7**0.5) and rows["all"]["parameters"] == 12
    assert "mlp 0" in capsys.readouterr().out
    make_checkpoint(tmp_path / "other")
    assert compare.main([argv[0], argv[1], str(tmp_path / "other")]) == 2
    assert "models of one base" in capsys.readouterr().err

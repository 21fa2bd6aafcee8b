"""SFT on several GPUs: the batch stays the recipe's, what is known to go wrong is refused, and FSDP2 trains what one does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_conformance import pythons
from test_strategies import plan

from synergy import environments, lab, machine
from synergy.data import prepare
from synergy.driver import identity
from synergy.errors import UserError
from synergy.stages import Command, Job, Stage, sft, sft_spread

BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def stage(*overrides: str) -> Stage:
    return plan("sft", "scale=qwen2_5_vl_7b", "data.source=/data", BENCH, *overrides)["sft"]


def with_config(**config: Any) -> Stage:
    made = stage()
    return replace(made, settings={**made.settings, "config": {**made.settings["config"], **config}})


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [str(i) for i in range(8)])


@given(st.integers(1, 512), st.integers(1, 16), st.integers(1, 16))
def test_a_step_sees_the_recipes_batch_or_the_run_is_refused(batch: int, micro: int, gpus: int) -> None:
    settings = {"config": {"per_device_train_batch_size": micro}, "batch": batch, "gpus": gpus}
    if batch % (micro * gpus):
        with pytest.raises(UserError, match=rf"sft.batch={batch} is not made of {gpus} processes"):
            sft_spread.accumulation(settings)
    else:
        assert sft_spread.accumulation(settings) * micro * gpus == batch


def test_how_it_is_spread_does_not_change_the_key() -> None:
    def key(*overrides: str) -> str:
        return identity.key(identity.identity(stage(*overrides), {}, {}))

    assert key() == key("sft.gpus=4") == key("sft.config.per_device_train_batch_size=2")
    assert len({key(), key("sft.batch=64"), key("sft.config.fsdp=null"), key("sft.config.bf16=false")}) == 4


def test_a_file_counts_by_what_it_says(tmp_path: Path) -> None:
    def key(text: str) -> str:
        (tmp_path / "zero.json").write_text(text)
        return identity.key(identity.identity(with_config(deepspeed=str(tmp_path / "zero.json")), {}, {}))

    assert key('{"a": 1}') == key('{"a":1}') != key('{"a": 2}')
    with pytest.raises(UserError, match="not a readable JSON file"):
        key("{")


def test_torchrun_is_used_where_it_is_needed(eight_gpus: None) -> None:
    env = sft_spread.env(stage().settings)
    assert (env["FORCE_TORCHRUN"], env["NPROC_PER_NODE"], env["FSDP_STATE_DICT_TYPE"]) == ("1", "8", "FULL_STATE_DICT")
    assert env.items() >= sft_spread.ON_LOOPBACK.items()
    tiny = sft_spread.env(plan("sft")["sft"].settings)
    assert tiny == {"NPROC_PER_NODE": "1", "NNODES": "1"}, "one process, whatever the host has"


@pytest.mark.parametrize(
    ("made", "version", "told"),
    [
        (with_config(fsdp=None, deepspeed=OFFLOAD), "0.18.9", "loses some of their gradients"),
        (with_config(fsdp=None, deepspeed=OFFLOAD), "0.19.0", None),
        (with_config(fsdp=None, deepspeed=OFFLOAD, per_device_train_batch_size=2), "0.18.9", None),
        (with_config(fsdp=None, deepspeed={"zero_optimization": {"stage": 2}}), "0.18.9", None),
        (with_config(fsdp=None, deepspeed=OFFLOAD), None, "has no deepspeed"),
        (with_config(fsdp=None, deepspeed={"zero_optimization": {"stage": 3}}), "0.19.0", "shards and no model"),
        (with_config(fsdp=None, deepspeed="/nowhere.json"), "0.19.0", "not a readable JSON file"),
        (with_config(deepspeed=OFFLOAD), "0.19.0", "shard the weights twice"),
        (with_config(fsdp_config=None), None, "FSDP 1"),
        (with_config(gradient_accumulation_steps=4), None, "follows from sft.batch=32"),
        (stage("sft.batch=null"), None, "sft.batch=null with 8 processes"),
        (stage("sft.gpus=9"), None, "this host has 8"),
        (stage("+sft.env.NPROC_PER_NODE=2"), None, "set sft.gpus"),
        (stage(), None, None),
    ],
)
def test_what_is_known_to_go_wrong_is_refused(
    eight_gpus: None, monkeypatch: pytest.MonkeyPatch, made: Stage, version: str | None, told: str | None
) -> None:
    monkeypatch.setattr(environments, "versions", lambda python: {"deepspeed": version} if version else {})
    made = replace(made, settings={**made.settings, "gpus": made.settings["gpus"] or 8})
    if told is None:
        sft.check(made, {"llamafactory": "/python"})
    else:
        with pytest.raises(UserError, match=re.escape(told)):
            sft.check(made, {"llamafactory": "/python"})


def test_without_gpus_sharding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    with pytest.raises(UserError, match=r"sft\.config\.fsdp needs GPUs"):
        sft.check(stage("sft.gpus=1"), {"llamafactory": "/python"})


def test_fsdp_resumes_from_its_own_file(tmp_path: Path) -> None:
    job = Job(stage(), "k" * 64, tmp_path, tmp_path / "attempt-1", {}, {})
    folder = make_checkpoint(job.work / "out/checkpoint-4")
    before = (folder / "model.safetensors").read_bytes()
    (folder / "trainer_state.json").write_text("{}")
    assert sft.resume_point(job) is None, "without the optimizer it is no checkpoint"
    torch.save({}, folder / "optimizer.bin")
    torch.save({}, folder / sft_spread.FSDP_WEIGHTS)
    torch.save({}, folder / "rng_state_0.pth")
    assert sft.resume_point(job) == 4
    sft._prepare_resume(job)
    assert (folder / "model.safetensors").read_bytes() == before, "renamed for nothing"
    (folder / "rng_state_1.pth").write_bytes((folder / "rng_state_0.pth").read_bytes()[:-9])
    assert sft.resume_point(job) is None, "torn"


def test_deepspeed_resumes_only_on_as_many_gpus(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    (folder / "global_step4").mkdir(parents=True)
    for rank in range(2):
        (folder / f"global_step4/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    sft_spread.check_resume(folder, {"gpus": 2})
    with pytest.raises(UserError, match=r"set sft\.gpus=2"):
        sft_spread.check_resume(folder, {"gpus": 4})


def test_a_process_on_a_cpu_loads_its_optimizer_by_the_plug_in_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_importable: None
) -> None:
    """That such a run over two nodes goes on from a checkpoint is shown in test_cluster_run.py."""
    import synergy_llamafactory

    monkeypatch.setattr(torch.serialization, "_package_registry", list(torch.serialization._package_registry))
    file, named = tmp_path / "optimizer.pt", torch.device("cpu", 0)  # as accelerate calls it
    torch.save({"exp_avg": torch.ones(2)}, file)
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        torch.load(file, map_location=named, weights_only=True)
    synergy_llamafactory.number_the_cpu()
    found = torch.load(file, map_location=named, weights_only=True)["exp_avg"]
    assert found.device.type == "cpu" and found.tolist() == [1.0, 1.0]


# accelerate 1.11 (state.py, AcceleratorState) leaves FSDP out on a CPU, where it works over gloo; told it is a GPU, it doesn't.
FSDP_ON_CPU = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        stock = spec.loader.exec_module

        def exec_module(module):
            stock(module)
            init = module.AcceleratorState.__init__

            def as_gpu(self, *args, **others):
                if others.get("fsdp_plugin"):
                    module.PartialState()
                    module.PartialState._shared_state["distributed_type"] = module.DistributedType.MULTI_GPU
                init(self, *args, **others)

            module.AcceleratorState.__init__ = as_gpu

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    spec = {
        "part": "train", "source": "lab", "seed": 0, "sizes": {"train": 48, "val": 2, "bench": 5}, "base": str(lab.BASE),
        "train": "train.jsonl", "validation": None, "limit": None, "instruction": "Think.", "cutoff_len": 256,
    }  # fmt: skip
    prepare.train(spec, tmp_path / "data")
    return tmp_path / "data"


def launched(job: Job, hook: Path) -> Command:
    """Run the stage's own command to its end."""
    job.attempt.mkdir(parents=True, exist_ok=True)
    job.work.mkdir(exist_ok=True)
    command = sft.command(job)
    assert command is not None
    env = {**os.environ, **command.env}
    env["PYTHONPATH"] = os.pathsep.join((str(hook), env["PYTHONPATH"]))
    log = job.attempt / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(command.argv, env=env, cwd=command.cwd, stdout=file, stderr=subprocess.STDOUT)
    assert done.returncode == 0, log.read_text()[-12000:]
    return command


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_trains_and_resumes_exactly(tmp_path: Path, data: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(FSDP_ON_CPU)
    inputs = {"base": lab.BASE, "model": lab.BASE, "data": data}

    def job(name: str, gpus: int, **config: Any) -> Job:
        made = plan("sft", "sft.batch=16", f"sft.gpus={gpus}", "sft.config.num_train_epochs=2")["sft"]
        kept = {k: v for k, v in made.settings["config"].items() if k != "gradient_accumulation_steps"}
        kept |= {"per_device_train_batch_size": 4, "save_steps": 2, "save_total_limit": 5, **config}
        made = replace(made, settings={**made.settings, "config": kept})
        return Job(made, "k" * 64, tmp_path / name, tmp_path / name / "attempt-1", inputs, pythons())

    one, two = job("one", 1), job("two", 2, fsdp="full_shard auto_wrap", fsdp_config={"version": 2})
    launched(one, tmp_path / "none")
    command = launched(two, tmp_path / "hook")
    assert yaml.safe_load(Path(command.argv[-1]).read_text())["gradient_accumulation_steps"] == 2
    out = two.work / "out"
    assert (out / "checkpoint-2" / sft_spread.FSDP_WEIGHTS).exists(), "not sharded at all"
    figures = [sft.collect(made, tmp_path / f"{made.folder.name}-published") for made in (one, two)]
    assert figures[0]["steps"] == figures[1]["steps"] == 6
    assert figures[0]["loss_last"] == pytest.approx(figures[1]["loss_last"], abs=1e-5)
    first, second = (load_file(tmp_path / f"{name}-published/model.safetensors") for name in ("one", "two"))
    assert set(first) == set(second) == set(load_file(lab.BASE / "model.safetensors"))
    for name, tensor in first.items():
        # a tenth of one step of Adam: where a gradient is all but 0, the order of a sum decides its sign
        torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=0)
        assert (tensor - second[name]).abs().mean() < 1e-6

    for late in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(out / late)
    for file in (*out.glob("*.json"), out / "model.safetensors"):
        file.unlink()
    assert sft.resume_point(two) == 2
    launched(two, tmp_path / "hook")
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6
    sft.collect(two, tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in second.items())

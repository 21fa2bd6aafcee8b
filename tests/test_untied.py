"""A model without tied embeddings over two ranks: all but the first start from empty weights, and the output layer is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import with_plugins
from safetensors.numpy import load_file, save_file
from test_end_to_end import entries, run
from test_strategies import plan
from test_within_step import models
from test_within_update import SGD, STEP, close, fields, job, mixed, moved, updates

from synergy import lab
from synergy.stages import rl

__all__ = ["models"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("plugins_importable")]
LOAD = """
import sys, torch
if sys.argv[2] == "with": import verl_untied
from accelerate import init_empty_weights
from transformers import Qwen2_5_VLForConditionalGeneration
with init_empty_weights():
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype="float32")
print({value.device.type for value in model.parameters()}, len(list(model.parameters())))
"""


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's base with an output layer of its own, as Qwen2.5-VL 7B has."""
    folder = tmp_path_factory.mktemp("untied")
    for file in Path(lab.BASE).iterdir():
        if file.suffix in (".json", ".txt"):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(Path(lab.BASE) / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_loaded_with_the_plug_in_they_are_all_empty(untied: Path, warm_python: str) -> None:
    done = with_plugins(warm_python, LOAD, str(untied), "with")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("{'meta'}") and int(done.stdout.split()[-1]) > 20


def test_the_reason_is_still_there(untied: Path, warm_python: str) -> None:
    done = with_plugins(warm_python, LOAD, str(untied), "without")
    assert "_is_hf_initialized" in done.stderr, "accelerate takes transformers' mark: the plug-in can go"


FUSED = [
    rl.override(f"actor_rollout_ref.model.{key}", value)
    for key, value in (("use_fused_kernels", True), ("fused_kernel_options.impl_backend", "torch"))
]


def case(models: tuple[Any, Any], untied: Path, *words: str) -> dict[str, Any]:
    told = [*job("progressive", "progressive", STEP), *SGD, rl.override("actor_rollout_ref.model.path", str(untied))]
    return {"it": {"overrides": [*told, *words], "rows": fields(models[1], mixed(), "within_step"), "mini": 8}}


def test_two_ranks_of_verls_actor_train_it_as_one_does(
    models: tuple[Any, Any], untied: Path, warm_python: str, tmp_path: Path
) -> None:
    """With the plug-ins and the fused kernels of the paper's scales; one rank, which starts from whole weights, without."""
    paper = plan("rl", "scale=qwen2_5_vl_7b", "data.source=/data")["rl"].settings
    assert paper["verl"]["actor_rollout_ref"]["model"]["use_fused_kernels"], "else the next lines test what nobody runs"
    one = updates(warm_python, tmp_path / "one", case(models, untied), VERL_USE_EXTERNAL_MODULES="synergy_verl")["it"]
    plug_ins = paper["env"]["VERL_USE_EXTERNAL_MODULES"]
    two = updates(warm_python, tmp_path / "two", case(models, untied, *FUSED), 2, VERL_USE_EXTERNAL_MODULES=plug_ins)[
        "it"
    ]
    assert set(two["before"]) == set(one["before"]) >= {"lm_head.weight"}
    assert all((two["before"][name] == value).all() for name, value in one["before"].items())
    for figure in ("loss", "pg_loss", "kl_loss", "grad_norm"):
        assert two["metrics"][figure] == pytest.approx(one["metrics"][figure], rel=1e-4, abs=1e-7), figure
    assert len(one["metrics"]["loss"]) == 2 and all(one["metrics"]["sft_nll"]), "two updates, both with SFT"
    close(moved(two), moved(one), tolerance=1e-4)
    assert moved(two)["lm_head.weight"].any()


def test_two_ranks_hold_it_in_bfloat16_as_one_does(
    models: tuple[Any, Any], untied: Path, warm_python: str, tmp_path: Path
) -> None:
    """As a reference model is held whose checkpoint is so; its frequencies, too, on a rank that began with empty weights."""
    half = rl.override("actor_rollout_ref.actor.fsdp_config.model_dtype", "bf16")
    compute = "++actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16"
    plug_ins = plan("rl")["rl"].settings["env"]["VERL_USE_EXTERNAL_MODULES"]
    made = {
        ranks: updates(
            warm_python,
            tmp_path / str(ranks),
            case(models, untied, *FUSED, half, compute),
            ranks,
            VERL_USE_EXTERNAL_MODULES=plug_ins,
        )["it"]
        for ranks in (1, 2)
    }
    assert {str(value.dtype) for one in made.values() for value in one["before"].values()} == {"torch.bfloat16"}
    assert all((made[2]["before"][name] == value).all() for name, value in made[1]["before"].items())
    norms = [one["metrics"]["grad_norm"][0] for one in made.values()]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_verl_shards_the_output_layer_by_itself_still(
    models: tuple[Any, Any], untied: Path, warm_python: str, tmp_path: Path
) -> None:
    """Without that half of the plug-in, on one rank: if this trains, the half can go."""
    with pytest.raises(AssertionError, match=r"mixed torch\.Tensor and DTensor"):
        updates(warm_python, tmp_path / "one", case(models, untied, *FUSED), VERL_USE_EXTERNAL_MODULES="synergy_verl")


def test_an_rl_stage_over_two_ranks(untied: Path, tmp_path: Path) -> None:
    """Actor, reference and a vLLM on each; the policy that vLLM gets after an update is the actor's."""
    words = (
        f"model.path={untied}", "recipe=rl", "budget.rl_steps=2", "data.sizes={train: 16, val: 8, bench: 4}",
        "rl.verl.trainer.n_gpus_per_node=2", "rl.verl_add.ray_kwargs.ray_init.num_gpus=2",
    )  # fmt: skip
    run(tmp_path, *words, *(f"+rl.verl.{word}" for word in FUSED))
    made = tmp_path / entries(tmp_path)["rl"].output
    attempt = made.parent / "attempt-1"
    assert len(set(re.findall(r"WorkerDict pid=(\d+)", (attempt / "log.txt").read_text()))) == 2
    rows = [json.loads(line)["data"] for line in (attempt / "verl_metrics.jsonl").read_text().splitlines()]
    alike = [row[name] for row in rows if (name := "training/rollout_actor_probs_pearson_corr") in row]
    assert len(alike) == 2 and min(alike) > 0.999
    before, after = (load_file(next(folder.glob("*.safetensors")))["lm_head.weight"] for folder in (untied, made))
    assert 0 < abs(after - before).max() < 0.01

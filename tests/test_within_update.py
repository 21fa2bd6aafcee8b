"""SFT and RL in one step: real updates by verl's own actor worker, as the recipes' stages set it, against plain GRPO's, against
LLaMA-Factory's own gradient, and on two data-parallel ranks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_strategies import config, plan
from test_within_step import Row, advantages, models, rollouts, trace

from synergy import lab, paths
from synergy.data import writers
from synergy.data.records import Record
from synergy.stages import rl, within_step

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
pytest.importorskip("llamafactory")
pytestmark = pytest.mark.usefixtures("plugins_importable")

__all__ = ["models"]
STEP = "recipe.granularity=step"
SGD = [
    "actor_rollout_ref.actor.optim.optimizer=SGD",
    "actor_rollout_ref.actor.optim.lr=1.0",
    "actor_rollout_ref.actor.optim.clip_grad=1e9",
]
"""An update is the gradient itself."""
MEAN = "rl.verl.actor_rollout_ref.actor.loss_agg_mode=token-mean"


def run(python: str, program: str, *words: str, ranks: int = 1, **env: str) -> None:
    """A program of tests/ with the plug-ins and the environment of the stages."""
    told = {**os.environ, "PYTHONPATH": os.pathsep.join((paths.pythonpath(), str(Path(__file__).parent))), **env}
    argv = [python, str(Path(__file__).with_name(program)), *words]
    started = [
        subprocess.Popen(argv, env={**told, "RANK": str(rank), "WORLD_SIZE": str(ranks)}, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for rank in range(ranks)
    ]  # fmt: skip
    for one in started:
        text, _ = one.communicate(timeout=600)
        assert one.returncode == 0, text[-4000:]


def environment(folder: Path) -> dict[str, str]:
    """That of rl/tiny, with ranks that meet in a folder."""
    env = {**config("rl").rl.env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return env | {"DIST_INIT_METHOD": f"file://{folder}/meet", "GLOO_SOCKET_IFNAME": "lo"}


def updates(python: str, folder: Path, cases: dict[str, Any], ranks: int = 1, **more: str) -> Any:
    """more: environment beside that of rl/tiny."""
    folder.mkdir()
    torch.save(cases, folder / "in.pt")
    run(
        python,
        "verl_update.py",
        str(folder / "in.pt"),
        str(folder / "out.pt"),
        ranks=ranks,
        **environment(folder) | more,
    )
    return torch.load(folder / "out.pt", weights_only=False)


def job(recipe: str, stage: str, *words: str) -> list[str]:
    """verl's overrides of a recipe's RL stage, as its job gets them."""
    settings = plan(recipe, *words)[stage].settings
    ours = {
        "actor_rollout_ref.model.path": str(lab.BASE),
        "actor_rollout_ref.actor.optim.total_training_steps": 100,
        **within_step.verl_overrides(settings, lab.BASE, Path("checkpoints")),
    }
    return rl.overrides(settings) + [rl.override(key, value) for key, value in ours.items()]


def fields(then: Any, rows: Sequence[Row], name: str, images: Sequence[dict[str, Any]] = (), **told: Any) -> list[Any]:
    """Rows as verl's trainer hands them to its actor. images: of each row, pixel_values and image_grid_thw; without them each
    row gets a small one, since verl 0.9.1 fails on a micro-batch that has none."""
    marked, made = advantages(rows, name, **told), []
    for i, row in enumerate(rows):
        prompt = list(row.prompt) if images else [then.config.image_token_id] * 4 + list(row.prompt)
        ids, start, length = torch.tensor([*prompt, *row.response]), len(prompt) - 1, len(row.response)
        noise = torch.Generator().manual_seed(sum(row.response))
        small = {"pixel_values": torch.randn(16, 1176, generator=noise), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        seen = dict(images[i]) if images else small
        places = positions(then, ids, seen)
        with torch.no_grad():
            logits = then(input_ids=ids[None], position_ids=places[:, None], **seen).logits[0]
        every = torch.log_softmax(logits, -1)[:-1].gather(-1, ids[1:, None])[:, 0]
        old = every[start : start + length].clone()
        made.append({
            "input_ids": ids, "position_ids": places, "prompts": torch.tensor(prompt),
            "responses": torch.tensor(row.response), "response_mask": torch.tensor(row.mask),
            "loss_mask": torch.tensor(row.count), "advantages": marked[i, :length].clone(), "old_log_probs": old,
            "ref_log_prob": old.clone(), "multi_modal_inputs": seen,
        })  # fmt: skip
    return made


def positions(model: Any, ids: Any, seen: dict[str, Any]) -> Any:
    kinds = (ids == model.config.image_token_id).long()[None]
    three, _ = model.model.get_rope_index(
        ids[None],
        image_grid_thw=seen.get("image_grid_thw"),
        attention_mask=torch.ones_like(kinds),
        mm_token_type_ids=kinds,
    )
    return torch.cat([torch.arange(len(ids))[None], three[:, 0]])


def moved(done: dict[str, Any]) -> dict[str, Any]:
    return {name: done["before"][name] - done["after"][name] for name in done["before"]}


def close(found: dict[str, Any], wanted: dict[str, Any], factor: float = 1.0, tolerance: float = 1e-5) -> None:
    scale = factor * max(float(value.abs().max()) for value in wanted.values())
    worst = max(float((found[name] - factor * value).abs().max()) for name, value in wanted.items())
    assert scale > 0 and worst <= tolerance * scale, (worst, scale)


def mixed() -> list[Row]:
    """Two mini-batches of two questions each: plain and begun rollouts, a trace, and four rollouts."""
    return [
        *rollouts("a", [1, 0, 0.1, 1]),
        *trace("b", 9),
        *rollouts("c", [1, 0, 1, 1], given=3),
        *rollouts("d", [0, 0, 0, 1]),
    ]


def test_a_step_without_a_trace_updates_as_grpo_bit_for_bit(
    models: tuple[Any, Any], warm_python: str, tmp_path: Path
) -> None:
    """The job of progressive in its last step, where the share of the trace is 0, and that of plain RL, by their optimizer."""
    plain = [*rollouts("a", [1, 0, 0.1, 1]), *rollouts("d", [0, 0, 0, 1])]
    last, alone = fields(models[1], plain, "within_step"), fields(models[1], plain, "grpo")
    cases = {
        "ours": {"overrides": job("progressive", "progressive", STEP), "rows": last, "mini": 4},
        "grpo": {"overrides": job("rl", "rl"), "rows": alone, "mini": 4},
    }
    done = updates(warm_python, tmp_path / "one", cases)
    ours, grpo = done["ours"], done["grpo"]
    assert [ours["metrics"][name] == grpo["metrics"][name] for name in ("pg_loss", "kl_loss", "grad_norm")] == [
        True
    ] * 3
    assert all(torch.equal(value, ours["after"][name]) for name, value in grpo["after"].items())
    assert len(grpo["metrics"]["pg_loss"]) == 2 and any(value.any() for value in moved(grpo).values()), "two updates"


def test_fused_kernels_update_as_without(models: tuple[Any, Any], warm_python: str, tmp_path: Path) -> None:
    """rl/paper has them, rl/tiny not. In a process of their own: verl changes the model's class."""
    rows = fields(models[1], mixed(), "within_step")
    alone = [*job("progressive", "progressive", STEP), *SGD]
    fused = papers("fused_kernel")
    assert len(fused) == 2
    cases = {"plain": alone, "fused": [*alone, *fused]}
    plain, kernels = (
        updates(warm_python, tmp_path / name, {"one": {"overrides": words, "rows": rows, "mini": 8}})["one"]
        for name, words in cases.items()
    )
    for figure in ("loss", "pg_loss", "kl_loss", "grad_norm", "sft_nll"):
        assert kernels["metrics"][figure] == pytest.approx(plain["metrics"][figure], rel=1e-4, abs=1e-7), figure
    found, wanted = moved(kernels), moved(plain)
    close(found, wanted, tolerance=1e-4)
    assert any(not torch.equal(found[name], value) for name, value in wanted.items()), "not used at all"


def papers(word: str) -> list[str]:
    """The overrides of rl/paper with this word."""
    settings = plan("rl", "scale=qwen2_5_vl_3b", "data.source=/data")["rl"].settings
    return [override for override in rl.overrides(settings) if word in override]


def test_a_fused_adam_updates_as_one_that_is_not(models: tuple[Any, Any], warm_python: str, tmp_path: Path) -> None:
    """rl/paper has it, rl/tiny not: two steps over FSDP2's tensors."""
    rows = fields(models[1], [*rollouts("a", [1, 0, 0.1, 1]), *rollouts("d", [0, 0, 0, 1])], "grpo")
    words, fused = job("rl", "rl"), papers("override_optimizer_config")
    assert len(fused) == 1
    cases = {
        name: {"overrides": told, "rows": rows, "mini": 4}
        for name, told in {"one": words, "other": words + fused}.items()
    }
    done = updates(warm_python, tmp_path / "adam", cases)
    close(moved(done["other"]), moved(done["one"]), tolerance=1e-3)
    assert any(not torch.equal(value, done["other"]["after"][name]) for name, value in done["one"]["after"].items()), (
        "as if not"
    )


def test_two_ranks_update_as_one(models: tuple[Any, Any], warm_python: str, tmp_path: Path) -> None:
    rows = fields(models[1], mixed(), "within_step")
    case = {"mixed": {"overrides": [*job("progressive", "progressive", STEP), *SGD], "rows": rows, "mini": 8}}
    one, two = (updates(warm_python, tmp_path / str(ranks), case, ranks)["mixed"] for ranks in (1, 2))
    for figure in ("loss", "pg_loss", "kl_loss", "grad_norm"):
        assert two["metrics"][figure] == pytest.approx(one["metrics"][figure], rel=1e-4, abs=1e-7), figure
    assert len(one["metrics"]["loss"]) == 2 and all(one["metrics"]["sft_nll"]), "two updates, both with SFT"
    close(moved(two), moved(one), tolerance=1e-4)


# Against LLaMA-Factory ----------------------------------------------------------------------------------------------


def llamafactory(python: str, folder: Path) -> Any:
    """Four questions with pictures and traces in its batch, and its gradient there."""
    from PIL import Image

    media, rng = folder / "media", np.random.default_rng(0)
    media.mkdir(parents=True)
    records = []
    for i in range(4):
        pixels = rng.integers(0, 255, (56, 56 + 28 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(media / f"{i}.png")
        text = f"<think>{i} plus 3 is {i + 3}{', so it is' * i}</think>\\boxed{{{i + 3}}}"
        records.append(
            Record(id=f"q{i}", question=f"What is {i} + 3?", answer=str(i + 3), trace=text, images=(f"{i}.png",))
        )
    writers.llamafactory(folder / "sft", {"train": [(r, r.trace or "", None) for r in records]})
    cfg = config("sft")
    told = {
        **dict(cfg.sft.config), "stage": "sft", "do_train": True, "model_name_or_path": str(lab.BASE),
        "template": cfg.model.template, "dataset_dir": str(folder / "sft"), "media_dir": str(media), "dataset": "train",
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4,
    }  # fmt: skip
    (folder / "sft.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(told))))
    run(python, "lf_gradient.py", str(folder / "sft.yaml"), str(folder / "lf.pt"), HF_HUB_OFFLINE="1", **cfg.sft.env)
    return records, torch.load(folder / "lf.pt", weights_only=False)


def traced(batch: dict[str, Any], texts: Sequence[str], copies: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of questions that all took SFT: the traces by our own way, the prompts and pictures of LLaMA-Factory's batch."""
    from transformers import AutoTokenizer
    from verl_within_rollout import trace_ids

    tokenizer = AutoTokenizer.from_pretrained(lab.BASE)
    ours = {tuple(trace_ids(tokenizer, text, 500)): text for text in texts}
    patches = batch["image_grid_thw"].prod(-1).tolist()
    rows, seen = [], []
    for i, pixels in enumerate(batch["pixel_values"].split(patches)):
        labels = batch["labels"][i]
        told = labels.ne(-100).nonzero()[:, 0]
        prompt, response = batch["input_ids"][i, : told[0]].tolist(), labels[told].tolist()
        assert ours.pop(tuple(response)), "both train on the same tokens"
        rows.append(Row(f"sft{i}", prompt, response, [0] * len(response), [copies] * len(response)))
        seen.append({"pixel_values": pixels, "image_grid_thw": batch["image_grid_thw"][i : i + 1]})
        for _ in range(copies - 1):
            rows.append(Row(f"pad{i}", [1] * 5, [1], [0], [0]))
            seen.append({})
    return rows, seen


def test_traces_alone_have_llamafactorys_gradient_times_the_weight(
    models: tuple[Any, Any], warm_python: str, tmp_path: Path
) -> None:
    """Interleaved where no question was solved, and progressive where the whole trace is given: weights 1 and 0.2, from the
    recipes."""
    records, told = llamafactory(warm_python, tmp_path / "lf")
    rows, seen = traced(told["batch"], [r.trace for r in records], copies=8)
    cases = {}
    for recipe in ("interleaved", "progressive"):
        setting = plan(recipe, STEP)[recipe].settings["within_step"]
        marked = fields(models[0], rows, "within_step", seen, copies=setting["copies"], weight=setting["sft_weight"])
        cases[recipe] = {"overrides": [*job(recipe, recipe, STEP, MEAN), *SGD], "rows": marked, "mini": len(rows)}
    done = updates(warm_python, tmp_path / "verl", cases)
    language = {name: value for name, value in told["grads"].items() if "visual" not in name}
    assert len(language) > 10
    for recipe, weight in (("interleaved", 1.0), ("progressive", 0.2)):
        assert done[recipe]["metrics"]["pg_loss"] == pytest.approx([weight * told["loss"]], rel=1e-5)
        found = moved(done[recipe])
        close(found, language, weight)
        assert all(not value.any() for name, value in found.items() if name not in language), "frozen, as in SFT"

"""Lengths that a stage's vLLM or its model does not hold are refused before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_strategies import RECIPES, config, plan

from synergy import lab, strategies
from synergy.errors import UserError
from synergy.stages import fit_rl, lengths

BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
RL = "rl.verl.actor_rollout_ref.rollout.max_model_len"
FOR_LARGE_SCALES = {f"ablation/two_stage_{size}k" for size in (4, 8, 16)}
SERVERS = (["--max-model-len=512"], ["--dtype=auto", "--max_model_len", "512", "--enforce-eager"])
OTHER_WORDS = (["--max-model-len=1k"], ["--max-model-len=auto"], ["--dtype=auto"], [])


def check(recipe: str, stage: str, *words: str, base: Path | None = lab.BASE) -> None:
    lengths.check(plan(recipe, *words)[stage], base)


def evaluation(most: int, server: list[str]) -> tuple[str, str]:
    return f"evaluate.sampling.max_tokens={most}", f"evaluate.server={json.dumps(server)}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_lengths_go_together(recipe: str, tmp_path: Path) -> None:
    """The model's context is Qwen2.5-VL's."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 128000}')
    for scale in ("qwen2_5_vl_3b", "qwen2_5_vl_7b"):
        for stage in strategies.stages(
            config(recipe, f"scale={scale}", "data.source=/data", "model.path=/model", BENCH)
        ):
            lengths.check(stage, tmp_path)
    if recipe not in FOR_LARGE_SCALES:
        for stage in plan(recipe).values():
            lengths.check(stage, lab.BASE)


def test_responses_that_verl_would_cut_are_refused() -> None:
    check("rl", "rl", "lengths.rl=256")
    with pytest.raises(
        UserError, match=rf"^{RL}=512 does not hold a prompt of 256 .* of 257 \(lengths\); raise it to 513 or"
    ):
        check("rl", "rl", "lengths.rl=257")
    check("rl", "rl", "lengths.rl=257", f"{RL}=513")


def test_samples_that_have_no_room_are_refused() -> None:
    check("distill", "responses", "sample.sampling.max_tokens=511")
    with pytest.raises(UserError, match=r"^sample\.engine\.max_model_len=512 does not hold a question and 512 tokens"):
        check("distill", "responses", "sample.sampling.max_tokens=512")


@pytest.mark.parametrize("server", SERVERS)
def test_responses_as_long_as_the_servers_context_are_refused(server: list[str]) -> None:
    check("base", "eval-base", *evaluation(511, server))
    with pytest.raises(
        UserError, match=r"^evaluate\.server: --max-model-len=512 does not hold a question and 512 tokens"
    ):
        check("base", "eval-base", *evaluation(512, server))


@pytest.mark.parametrize("server", OTHER_WORDS)
def test_other_words_for_a_length_are_vllms_to_judge(server: list[str]) -> None:
    check("base", "eval-base", *evaluation(1023, server))


def test_more_than_the_models_context_is_refused() -> None:
    told = r": more than the model's context of 1024 tokens \(max_position_embeddings in .*config\.json\); lower it$"
    for word in (f"{RL}=1024", f"~{RL}"):
        check("rl", "rl", "lengths.rl=768", word)
    with pytest.raises(UserError, match=rf"^{RL}=1025{told}"):
        check("rl", "rl", f"{RL}=1025")
    with pytest.raises(UserError, match=rf"^a prompt of 256 .* of 769 \(lengths\){told}"):
        check("rl", "rl", "lengths.rl=769", f"~{RL}")
    with pytest.raises(UserError, match=told):
        check("base", "eval-base", *evaluation(96, ["--max-model-len=1025"]))
    check("base", "eval-base", *evaluation(96, ["--max-model-len=1025"]), f"+evaluate.env.{lengths.LONGER}='1'")
    check("base", "eval-base", *evaluation(96, ["--max-model-len=1025"]), base=None)


GAE = "rl.verl.algorithm.adv_estimator=gae"


@pytest.mark.parametrize(
    ("word", "more"),
    [
        (f"rl.verl.{fit_rl.TOKENS}=8191", ()),
        *((f"+rl.verl.{key}=4096", ()) for key in lengths.LOG_PROBS),
        (f"rl.verl_add.{fit_rl.CRITIC_TOKENS}=4096", (GAE,)),
    ],
)
def test_a_micro_batch_that_holds_no_longest_sequence_is_refused(word: str, more: tuple[str, ...]) -> None:
    """verl's own assertion ends the run, at the first sequence that is as long."""
    large = ("scale=qwen2_5_vl_3b", "data.source=/data", BENCH, word, *more)
    with pytest.raises(
        UserError, match=rf"^{re.escape(word.lstrip('+'))}: a micro-batch .* 4096 tokens .* to 8192 or more"
    ):
        check("rl", "rl", *large, base=None)
    dynamic = f"rl.verl.{fit_rl.ACTOR}.use_dynamic_bsz=false"
    wide = f"+rl.verl.{fit_rl.ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2"
    for way in (dynamic, wide, "lengths.rl=1024 rl.verl.data.max_prompt_length=1024"):
        check("rl", "rl", *large, *way.split(), base=None)


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        ({"max_position_embeddings": 128000, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 128000),
        ({"text_config": {"max_position_embeddings": 128000}}, 128000),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "linear", "factor": 2.0}}, 65536),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ([], None),
    ],
)
def test_the_context_is_as_vllm_derives_it(told: object, tokens: int | None, tmp_path: Path) -> None:
    assert lengths.context(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert lengths.context(tmp_path) == tokens

"""How a model fits into GPUs: the rule against sums done by hand and against what a run on an H200 took."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from test_strategies import plan

from synergy import compose, lab, machine
from synergy import plan as plan_verb
from synergy.data import checks, writers
from synergy.driver import checkpoint
from synergy.driver import plan as driver_plan
from synergy.errors import UserError
from synergy.lab import digits
from synergy.stages import Stage, fit, fit_rl, fit_sft, memory, rl, sft_spread, verl_keys
from synergy.stages.memory import Cards, Model

SMALL = Model(3_085_938_688, 668_684_288, 151_936, 2048, 36)
"""Qwen2.5-VL-3B."""
LARGE = Model(7_615_616_512, 676_550_144, 152_064, 3584, 28, tied=False)
"""Qwen2.5-VL-7B."""
BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
REFERENCE, MOMENTS, POLICY = (f"rl.verl.{key}" for key in fit_rl.AWAY)
VLLM = f"rl.verl.{fit_rl.ROLLOUT}.gpu_memory_utilization"
FUSED = f"rl.verl_add.{fit_rl.ADAM}.fused"
SHORT = f"rl.verl.{fit_rl.ACTOR}.ppo_max_token_len_per_gpu=8192"
GAE = "rl.verl.algorithm.adv_estimator=gae"
GAE_SHORT = (GAE, "rl.verl_add.critic.ppo_infer_max_token_len_per_gpu=8192")
A100, H200 = 80 * 2**30, 141 * 10**9
HOST = 125 * 2**30


@functools.cache
def stage(kind: str, *words: str) -> Stage:
    return plan(kind, "scale=qwen2_5_vl_3b", "data.source=/data", BENCH, *words)[kind]


@functools.cache
def told(*words: str) -> dict[str, Any]:
    return verl_keys.given(stage("rl", *words).settings)


@pytest.mark.parametrize(
    ("model", "cards", "words", "away", "wide"),
    [
        (SMALL, Cards(1, 1, A100), (), 2, 1),  # 40 + 52 of 79 GB; without the moments 15 + 52
        (SMALL, Cards(1, 1, H200), (), 1, 1),  # 40 + 85 of 130, and 8 more with the reference model
        (SMALL, Cards(1, 1, H200), (f"{VLLM}=0.4",), 0, 1),  # 48 + 56; 60 + 3 in training
        (SMALL, Cards(1, 1, H200), (f"rl.verl.{fit_rl.ACTOR}.use_kl_loss=false",), 0, 1),  # no reference model
        (SMALL, Cards(8, 8, A100), (), 0, 1),
        (LARGE, Cards(8, 8, A100), (), 0, 1),  # 12 + 4 + 52
        (LARGE, Cards(2, 2, A100), (), 2, 1),  # 47 + 52; 17 + 52
        (LARGE, Cards(4, 4, 40 * 10**9), (), 2, 2),  # vLLM's weights: 17 of 24 GB, in two 8; policy 8 and 24 of 37
        (LARGE, Cards(3, 3, 40 * 10**9), (), 2, 1),  # 3 GPUs are no whole number of pairs
        (SMALL, Cards(1, 1, A100), (f"{VLLM}=0.4",), 1, 1),  # 40 + 34
        (SMALL, Cards(1, 1, A100), (f"{VLLM}=0.4", f"{REFERENCE}=false"), 2, 1),  # 8 more
        (SMALL, Cards(1, 1, A100), (f"{MOMENTS}=false",), 3, 1),  # 25 + 52
        (LARGE, Cards(1, 1, H200), (), 2, 1),  # 94 + 85; 33 + 85
        (LARGE, Cards(1, 1, H200, HOST), (), 3, 1),  # the host would need 127 GB, or more: nothing fits
        (LARGE, Cards(1, 1, H200, HOST), (f"{VLLM}=0.25",), 1, 1),  # 94 + 35; 66 GB of the host's 134
        (SMALL, Cards(1, 1, H200), (f"{VLLM}=0.4", GAE), 0, 1),  # 48 + 60 of the critic
        (SMALL, Cards(1, 1, A100), (f"{VLLM}=0.3", GAE), 2, 1),  # 15 + 60; without the critic 40 + 26
        (LARGE, Cards(1, 1, 150 * 10**9), (f"{VLLM}=0.2", SHORT, *GAE_SHORT), 3, 1),  # 133 of 138; GRPO 94 + 30
        (SMALL, Cards(8, 8, 0), (), 3, 1),
        (SMALL, Cards(0, 0, A100), (), 3, 1),
        (None, Cards(8, 8, A100), (), 3, 1),
    ],
)
def test_the_rule(model: Model | None, cards: Cards, words: tuple[str, ...], away: int, wide: int) -> None:
    found = fit_rl.chosen(told(*words), model, cards)
    dtype = "fp32" if model is None else "bf16"
    sent = {key: number < away for number, key in enumerate(fit_rl.AWAY)}
    expected = {**sent, fit_rl.PARALLEL: wide, fit_rl.REFERENCE_DTYPE: dtype}
    assert {key: found[key] for key in expected} == expected
    assert set(found) - set(expected) == {fit_rl.TOKENS, fit_rl.CRITIC_TOKENS}


@pytest.mark.parametrize(
    ("model", "cards", "words", "tokens"),
    [
        (SMALL, Cards(1, 1, A100), (), 20480),
        (SMALL, Cards(1, 1, 64 * 10**9), (f"{VLLM}=0.1",), 16384),  # 53.3 of 58.9 GB, and 0.33 for a thousand
        (SMALL, Cards(1, 1, 58 * 10**9), (f"{VLLM}=0.1",), 8192),  # there is no room for more, nor for so many
        (SMALL, Cards(1, 1, A100), ("lengths.rl=28672",), 32768),  # the longest sequence, whatever there is
        (LARGE, Cards(1, 1, H200), (GAE, f"{VLLM}=0.1"), 8192),  # the critic's states alone are 124 of 130 GB
        (SMALL, Cards(8, 8, 0), (), 8192),
        (None, Cards(8, 8, A100), ("rl.verl.data.max_prompt_length=1024",), 5120),
    ],
)  # fmt: skip
def test_a_micro_batch_holds_what_there_is_room_for(
    model: Model | None, cards: Cards, words: tuple[str, ...], tokens: int
) -> None:
    found = fit_rl.chosen(told(*words), model, cards)
    assert found[fit_rl.TOKENS] == found[fit_rl.CRITIC_TOKENS] == tokens


@given(st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(10**10, 2 * 10**11))
def test_more_gpus_or_memory_never_need_more_room(nodes: int, per_node: int, memory: int) -> None:
    settings = stage("rl").settings
    less, more = Cards(nodes * per_node, per_node, memory), Cards(2 * nodes * per_node, per_node, memory)
    assert fit_rl.need(settings, LARGE, more).states <= fit_rl.need(settings, LARGE, less).states
    assert fit_rl.need(settings, LARGE, more).host <= fit_rl.need(settings, LARGE, less).host
    assert fit_rl.chosen(told(), LARGE, less)[fit_rl.PARALLEL] <= per_node
    before, after = (sum(fit_rl.chosen(told(), LARGE, on)[key] for key in fit_rl.AWAY) for on in (less, more))
    assert after <= before


@pytest.mark.parametrize(
    ("model", "cards", "words", "gb"),
    [
        (LARGE, Cards(1, 1, H200), (f"{REFERENCE}=false", f"{MOMENTS}=false", f"{POLICY}=false"), 33),  # one whole model
        (SMALL, Cards(8, 8, H200), (), 8 * 15),  # tied: each process reads the whole model
        (SMALL, Cards(16, 8, H200), (f"{MOMENTS}=true",), 8 * 15),
        (LARGE, Cards(1, 1, H200), (f"{REFERENCE}=true", f"{MOMENTS}=true", f"{POLICY}=true"), 33 + 61 + 33 + 33),
        (LARGE, Cards(2, 1, H200), (f"{REFERENCE}=true", f"{MOMENTS}=true", f"{POLICY}=true"), (33 + 61 + 33) / 2 + 33),
        (LARGE, Cards(1, 1, H200), (f"{REFERENCE}=true", f"{MOMENTS}=false", f"{POLICY}=false"), 33 + 33),
        (LARGE, Cards(1, 1, H200), (f"{VLLM}=0.25", f"rl.verl.{fit_rl.REFERENCE_DTYPE}=fp32"), 4 * 33),
        (LARGE, Cards(1, 1, H200), (f"{VLLM}=0.25", f"rl.verl.{fit_rl.REFERENCE_DTYPE}=bf16"), 33 + 33),
        (SMALL, Cards(8, 8, H200), (GAE,), 8 * 15 + 12 * 3.75),
    ],
)  # fmt: skip
def test_what_a_host_must_hold(model: Model, cards: Cards, words: tuple[str, ...], gb: float) -> None:
    assert fit_rl.need(stage("rl", *words).settings, model, cards).host / 1e9 == pytest.approx(gb, abs=1.5)


@pytest.mark.parametrize(
    ("took", "model", "count", "words"),
    [
        (101.55, SMALL, 1, (f"{VLLM}=0.4", f"{REFERENCE}=true", "rl.verl.actor_rollout_ref.model.use_fused_kernels=false")),
        (74.03, SMALL, 1, (f"{VLLM}=0.1", f"{FUSED}=false", f"rl.verl.{fit_rl.REFERENCE_DTYPE}=fp32")),
        (67.15, SMALL, 1, (f"{VLLM}=0.1", f"{FUSED}=false")),
        (63.37, SMALL, 1, (f"{VLLM}=0.1",)),
        (53.74, SMALL, 2, (f"{VLLM}=0.1", GAE)),
        (123.57, LARGE, 1, (f"{VLLM}=0.25", SHORT)),
    ],
)  # fmt: skip
def test_what_rl_took_on_h200s(took: float, model: Model, count: int, words: tuple[str, ...]) -> None:
    """verl's own perf/max_memory_allocated_gb (GiB; benchmarks/results/h200.md)."""
    settings = stage("rl", *words).settings
    found = fit_rl.need(settings, model, Cards(count, 1, 150 * 10**9))
    assert found.whole == found.process == pytest.approx(took * 2**30, rel=0.04)


def test_what_the_training_process_takes_is_without_vllm() -> None:
    found = fit_rl.need(stage("rl", f"{VLLM}=0.8").settings, SMALL, Cards(8, 8, H200))
    assert found.process < 0.3 * H200 and found.whole > 0.8 * H200


def test_a_7b_on_an_h200_needs_a_fused_adam() -> None:
    """Without, 33 + 31 + 61 GB and 31 more at the step, of 150: it ended there (benchmarks/results/h200.md)."""
    card = Cards(1, 1, 150_100_000_000, HOST)
    fused, plain = (stage("rl", f"{VLLM}=0.25", SHORT, f"{FUSED}={told}").settings for told in ("true", "false"))
    assert fit_rl.need(fused, LARGE, card).whole < memory.USABLE * card.memory
    assert fit_rl.need(plain, LARGE, card).states > card.memory


def test_sharding_and_bfloat16_are_counted() -> None:
    one = fit_sft.need(stage("sft", "sft.config.fsdp=null").settings, SMALL, Cards(4, 4, A100)).states
    assert one == 16 * SMALL.trained + 4 * SMALL.frozen
    assert fit_sft.need(stage("sft").settings, SMALL, Cards(4, 4, A100)).states == one // 4
    half = stage("sft", "sft.config.fsdp=null", "+sft.config.pure_bf16=true").settings
    assert fit_sft.need(half, SMALL, Cards(4, 4, A100)).states == one // 2


@pytest.mark.parametrize(("optim", "root"), [("adamw_torch_fused", 0), ("adamw_torch", 4), ("adafactor", 0)])
def test_sft_s_adam_takes_the_root_of_all_second_moments_unless_fused(optim: str, root: int) -> None:
    words = ("sft.config.fsdp=null", f"sft.config.optim={optim}", "sft.config.cutoff_len=16")
    found = fit_sft.need(stage("sft", *words).settings, LARGE, Cards(1, 1, H200))
    assert found.states == 16 * LARGE.trained + 4 * LARGE.frozen + root * LARGE.trained
    assert found.whole >= found.states


@pytest.mark.parametrize(
    ("longest", "cards", "batch", "made"),
    [
        (16384, Cards(1, 1, H200), 32, 1),  # 52 GB of states, 47 for each row at the cut-off, of 130
        (4400, Cards(1, 1, H200), 32, 4),  # 13 GB a row
        (700, Cards(1, 1, H200), 32, 32),
        (700, Cards(1, 1, H200), 24, 8),  # 16 rows don't divide 24
        (700, Cards(8, 8, H200), 32, 4),  # a GPU's share of the batch
        (700, Cards(1, 1, A100), 32, 8),
    ],
)
def test_sft_takes_as_many_rows_at_a_time_as_fit(longest: int, cards: Cards, batch: int, made: int) -> None:
    settings = {**stage("sft").settings, "batch": batch}
    assert fit_sft.rows(settings, longest, SMALL, cards) == made
    assert sft_spread.accumulation({**settings, "gpus": cards.count}) * cards.count == batch, "null counts as 1"


def test_the_longest_row_counts_with_its_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: H200)
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: SMALL)
    records = [replace(record, images=("a.png",)) for record in digits.questions("train", 3)]
    rows = [(record, record.trace * (5 if n == 2 else 1), None) for n, record in enumerate(records)]
    writers.llamafactory(tmp_path, {"train": rows})
    seen: list[int] = []
    monkeypatch.setattr(fit_sft, "rows", lambda settings, longest, of, on: seen.append(longest) or 4)
    for images in (5, 6000):
        (tmp_path / "train_visual_tokens.json").write_text(json.dumps({"a.png": images}))
        assert fit.micro_batch(stage("sft", "sft.gpus=1"), lab.BASE, tmp_path / "train.json", tmp_path) == 4
    words = checks.tokenizer(lab.BASE)
    text = checks.query(records[2].question, records[2].choices, None)
    alone = len(words.encode("<image>" + text).ids) + len(words.encode(rows[2][1]).ids)
    assert seen == [pytest.approx(alone + n + checks.TEMPLATE_TOKENS, abs=2) for n in (5, 6000)]
    monkeypatch.setattr(machine, "gpu_memory", lambda: 0)
    assert fit.micro_batch(stage("sft", "sft.gpus=1"), lab.BASE, tmp_path / "train.json", tmp_path) == 1


def test_null_rows_without_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"sft\.batch, which is null too"):
        sft_spread.accumulation({**stage("sft", "sft.batch=null").settings, "gpus": 1})


def test_null_keys_are_filled_in_and_others_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: A100)
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: SMALL)
    mine = stage("rl", "rl.verl.trainer.n_gpus_per_node=1", f"{MOMENTS}=false")
    reference, moments, policy = fit_rl.AWAY
    dtype = {fit_rl.REFERENCE_DTYPE: "bf16"}
    assert fit.filled(mine, lab.BASE) == {
        reference: True,
        policy: True,
        fit_rl.PARALLEL: 1,
        **dtype,
        fit_rl.TOKENS: 20480,
    }
    assert f"{moments}=false" in rl.overrides(mine.settings)
    assert not [word for word in rl.overrides(mine.settings) if word.endswith("=null") and "offload" in word]
    assert fit.filled(plan("rl")["rl"], lab.BASE) == {}, "the tiny scale names its own"


def test_how_it_is_spread_is_no_part_of_the_key() -> None:
    def key(*words: str) -> Any:
        return rl.identity(stage("rl", *words).settings)

    assert key() == key(f"{REFERENCE}=true") == key(f"{MOMENTS}=true") == key(f"{POLICY}=true")
    assert not [name for name in key()["verl"] if name in fit_rl.CHOSEN]
    assert key(f"rl.verl.{fit_rl.PARALLEL}=2")["verl"][fit_rl.PARALLEL] == 2, "as it always was, where it is told"


def test_what_cannot_fit_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: A100)
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    monkeypatch.setattr(machine, "memory", lambda: 0)
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: LARGE)
    for kind, way in (("sft", "pure_bf16"), ("rl", "n_gpus_per_node")):
        alone = stage(kind, "rl.verl.trainer.n_gpus_per_node=1")
        with pytest.raises(
            UserError, match=rf"stage {kind}: .* take 125 GB on each of 1 GPUs with 86 GB; take .*{way}"
        ):
            fit.check(alone, tmp_path)
        fit.check(stage(kind, "rl.verl.trainer.n_gpus_per_node=8", "sft.gpus=8"), tmp_path)
    fit.check(stage("rl", "rl.verl.trainer.n_gpus_per_node=1"), None)


def test_a_host_with_too_little_memory_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: H200)
    monkeypatch.setattr(machine, "memory", lambda: HOST)
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: LARGE)
    alone = ("rl.verl.trainer.n_gpus_per_node=1",)
    with pytest.raises(UserError, match=r"stage rl: .* 160 GB of this host's memory, of 134; make room by a lower .*"):
        fit.check(stage("rl", *alone), tmp_path)
    fit.check(stage("rl", *alone, f"{VLLM}=0.25"), tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: 2 * HOST)
    fit.check(stage("rl", *alone), tmp_path)
    placed = ("cluster=ray", "cluster.address=http://a:1", "cluster.gpus=1", "cluster.gpu_memory_gb=141")
    with pytest.raises(UserError, match=r"160 GB of a node's memory, of 134; claim more of it \(cluster.memory_gb\)"):
        fit.check(stage("rl", *placed, "cluster.memory_gb=134"), tmp_path)
    fit.check(stage("rl", *placed, "cluster.memory_gb=268"), tmp_path)
    fit.check(stage("rl", *placed), tmp_path)


@pytest.mark.parametrize(
    ("words", "fine"),
    [
        ("", False),  # 16.6 GB of 0.92 x 16
        ("--tensor-parallel-size=2", True),
        ("-tp 2", True),
        ("--pipeline_parallel_size=2", True),
        ("--tensor-parallel-size=2 --dtype=float32", False),
        ("--tensor-parallel-size=4 --dtype float32", True),
        ("--tensor-parallel-size=2 --gpu-memory-utilization=0.5", False),
        ("--quantization=fp8", True),  # another sum
    ],
)
def test_a_server_whose_weights_alone_are_too_much_is_refused(
    monkeypatch: pytest.MonkeyPatch, words: str, fine: bool
) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: LARGE)
    server = f"evaluate.server={json.dumps(words.split())}"
    here = plan("base", "scale=qwen2_5_vl_7b", BENCH, server)["eval-base"]
    placed = ("cluster=ray", "cluster.address=http://a:1", "cluster.gpus=4", "cluster.gpu_memory_gb=16")
    for made in (here, plan("base", "scale=qwen2_5_vl_7b", BENCH, server, *placed)["eval-base"]):
        if fine:
            fit.check(made, lab.BASE)
        else:
            with pytest.raises(
                UserError, match=r"eval-base: the model's .* \(evaluate.server: --tensor-parallel-size=\d\)"
            ):
                fit.check(made, lab.BASE)
    monkeypatch.setattr(machine, "gpu_memory", lambda: 0)
    fit.check(here, lab.BASE)


def test_an_engine_whose_weights_alone_are_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: LARGE)
    words = ("scale=qwen2_5_vl_7b", "data.source=/data", BENCH)
    with pytest.raises(
        UserError, match=r"passes.* 16\.6 GB .* 0\.9 of 16\.0 GB; .*\+sample\.engine\.tensor_parallel_size=2"
    ):
        fit.check(plan("interleaved", *words)["passes"], lab.BASE)
    fit.check(plan("interleaved", *words, "+sample.engine.tensor_parallel_size=2")["passes"], lab.BASE)


def test_the_sizes_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    found = memory.model(lab.BASE, frozen_vision=True)
    assert found is not None
    config = json.loads((lab.BASE / "config.json").read_text())
    assert (found.vocabulary, found.hidden) == (config["vocab_size"], config["hidden_size"])
    whole = memory.model(lab.BASE, frozen_vision=False)
    assert whole is not None and whole.trained == found.trained + found.frozen and found.frozen > 0
    kinds = {tensor.dtype for tensor in checkpoint.read(lab.BASE).values()}
    assert (found.half, found.tied) == (kinds == {"BF16"}, config["tie_word_embeddings"])
    broken = make_checkpoint(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert memory.model(broken, True) is None and memory.model(tmp_path / "nowhere", True) is None


def test_more_gpus_than_there_are_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    with pytest.raises(UserError, match=r"8 GPUs .* this host has 1; set rl\.verl\.trainer\.n_gpus_per_node=1"):
        rl.check(stage("rl"), {"verl": "/python"})


def test_plan_shows_what_each_training_stage_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: A100)
    monkeypatch.setattr(machine, "gpus", lambda: ["0", "1"])
    words = ["scale=qwen2_5_vl_3b", f"model.path={lab.BASE}", "data.source=lab", f"run.dir={tmp_path}", BENCH]
    tasks = compose.tasks(["recipe=two_stage", *words, "rl.verl.trainer.n_gpus_per_node=2"])
    todo = driver_plan.of_config(tasks[0].cfg)
    told = plan_verb._gpu_memory(todo.steps)
    by_name = {step.stage.name: told.get(step.folder) for step in todo.steps}
    assert by_name["sft"] and by_name["sft"].endswith("of 86 GB, on 2") and by_name["eval-base"] is None
    plan_verb.show(tasks, [todo])
    assert by_name["two_stage"] and f"host 0 of {machine.memory() / 1e9:.0f}" in by_name["two_stage"]
    assert "memory" in capsys.readouterr().out


def test_a_cluster_tells_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = replace(
        stage("rl"), settings={**stage("rl").settings, "cluster": {"nodes": 2, "gpus": 8, "gpu_memory_gb": 80.0}}
    )
    assert fit.cards(placed) == Cards(16, 8, 80 * 10**9)

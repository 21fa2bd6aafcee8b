"""How a model fits into GPUs: the rule against sums done by hand and against what a run on an H200 took."""

from __future__ import annotations

import functools
import json
import subprocess
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
from synergy.driver import plan as driver_plan
from synergy.errors import UserError
from synergy.lab import digits
from synergy.stages import Stage, fit, rl, sft_spread
from synergy.stages.fit import Cards, Model
from synergy.stages.verl_keys import flatten

SMALL = Model(3_085_938_688, 668_684_288, 151_936, 2048, 36)
"""Qwen2.5-VL-3B."""
LARGE = Model(7_615_616_512, 676_550_144, 152_064, 3584, 28)
"""Qwen2.5-VL-7B."""
BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
ROLLOUT, STAYS = f"rl.verl.{fit.ROLLOUT}", f"rl.verl.{fit.REFERENCE}.param_offload=false"
A100, H200 = 80 * 2**30, 141 * 10**9


@functools.cache
def stage(kind: str, *words: str) -> Stage:
    return plan(kind, "scale=qwen2_5_vl_3b", "data.source=/data", BENCH, *words)[kind]


@functools.cache
def told(*words: str) -> dict[str, Any]:
    return flatten(stage("rl", *words).settings["verl"])


@pytest.mark.parametrize(
    ("model", "cards", "words", "away", "wide"),
    [
        (SMALL, Cards(1, 1, A100), (), True, 1),  # 40 + 52 of 86 GB
        (SMALL, Cards(1, 1, H200), (), False, 1),  # 40 + 85 of 141
        (SMALL, Cards(8, 8, A100), (), False, 1),
        (LARGE, Cards(8, 8, A100), (), False, 1),  # 12 + 52
        (LARGE, Cards(2, 2, A100), (), True, 1),  # 47 + 52
        (LARGE, Cards(4, 4, 40 * 10**9), (), True, 2),  # vLLM's weights: 17 of 24 GB, in two 8
        (LARGE, Cards(3, 3, 40 * 10**9), (), True, 1),  # 3 GPUs are no whole number of pairs
        (SMALL, Cards(1, 1, A100), (f"{ROLLOUT}.gpu_memory_utilization=0.4",), False, 1),
        (SMALL, Cards(1, 1, A100), (f"{ROLLOUT}.gpu_memory_utilization=0.4", STAYS), True, 1),  # 15 more
        (SMALL, Cards(8, 8, 0), (), True, 1),
        (SMALL, Cards(0, 0, A100), (), True, 1),
        (None, Cards(8, 8, A100), (), True, 1),
    ],
)
def test_the_rule(model: Model | None, cards: Cards, words: tuple[str, ...], away: bool, wide: int) -> None:
    found = fit.chosen(told(*words), model, cards)
    assert found == {**dict.fromkeys(fit.OFFLOAD, away), fit.PARALLEL: wide}


@given(st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.integers(10**10, 2 * 10**11))
def test_more_gpus_or_memory_never_need_more_room(nodes: int, per_node: int, memory: int) -> None:
    settings = stage("rl").settings
    less, more = Cards(nodes * per_node, per_node, memory), Cards(2 * nodes * per_node, per_node, memory)
    assert fit.rl(settings, LARGE, more).states <= fit.rl(settings, LARGE, less).states
    assert fit.chosen(told(), LARGE, less)[fit.PARALLEL] <= per_node
    if not fit.chosen(told(), LARGE, less)[fit.OFFLOAD[0]]:
        assert not fit.chosen(told(), LARGE, more)[fit.OFFLOAD[0]]


def test_what_a_3b_took_on_an_h200() -> None:
    """verl's own perf/max_memory_allocated_gb of the third step (GiB; benchmarks/results/h200.md), without fused kernels."""
    rollout = "rl.verl.actor_rollout_ref.rollout.gpu_memory_utilization=0.4"
    settings = stage("rl", rollout, "rl.verl.actor_rollout_ref.model.use_fused_kernels=false").settings
    assert fit.rl(settings, SMALL, Cards(1, 1, H200)).whole == pytest.approx(101.55 * 2**30, rel=0.05)


def test_sharding_and_bfloat16_are_counted() -> None:
    one = fit.sft(stage("sft", "sft.config.fsdp=null").settings, SMALL, Cards(4, 4, A100)).states
    assert one == 16 * SMALL.trained + 4 * SMALL.frozen
    assert fit.sft(stage("sft").settings, SMALL, Cards(4, 4, A100)).states == one // 4
    half = stage("sft", "sft.config.fsdp=null", "+sft.config.pure_bf16=true").settings
    assert fit.sft(half, SMALL, Cards(4, 4, A100)).states == one // 2


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
    assert fit.rows(settings, longest, SMALL, cards) == made
    assert sft_spread.accumulation({**settings, "gpus": cards.count}) * cards.count == batch, "null counts as 1"


def test_the_longest_row_counts_with_its_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: H200)
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    monkeypatch.setattr(fit, "model", lambda base, frozen_vision: SMALL)
    records = [replace(record, images=("a.png",)) for record in digits.questions("train", 3)]
    rows = [(record, record.trace * (5 if n == 2 else 1), None) for n, record in enumerate(records)]
    writers.llamafactory(tmp_path, {"train": rows})
    seen: list[int] = []
    monkeypatch.setattr(fit, "rows", lambda settings, longest, of, on: seen.append(longest) or 4)
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
    monkeypatch.setattr(fit, "model", lambda base, frozen_vision: SMALL)
    mine = stage("rl", "rl.verl.trainer.n_gpus_per_node=1", f"rl.verl.{fit.OFFLOAD[1]}=false")
    assert fit.filled(mine, lab.BASE) == {fit.OFFLOAD[0]: True, fit.PARALLEL: 1}
    assert f"{fit.OFFLOAD[1]}=false" in rl.overrides(mine.settings)
    assert not [word for word in rl.overrides(mine.settings) if word.endswith("=null") and "offload" in word]
    assert fit.filled(plan("rl")["rl"], lab.BASE) == {}, "the tiny scale names its own"


def test_how_it_is_spread_is_no_part_of_the_key() -> None:
    def key(*words: str) -> Any:
        return rl.identity(stage("rl", *words).settings)

    assert key() == key(f"rl.verl.{fit.OFFLOAD[0]}=true")
    assert not [name for name in key()["verl"] if name in fit.CHOSEN]
    assert key(f"rl.verl.{fit.PARALLEL}=2")["verl"][fit.PARALLEL] == 2, "as it always was, where it is told"


def test_what_cannot_fit_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: A100)
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    monkeypatch.setattr(fit, "model", lambda base, frozen_vision: LARGE)
    for kind, way in (("sft", "pure_bf16"), ("rl", "n_gpus_per_node")):
        alone = stage(kind, "rl.verl.trainer.n_gpus_per_node=1")
        with pytest.raises(
            UserError, match=rf"stage {kind}: .* take 125 GB on each of 1 GPUs with 86 GB; take .*{way}"
        ):
            fit.check(alone, tmp_path)
        fit.check(stage(kind, "rl.verl.trainer.n_gpus_per_node=8", "sft.gpus=8"), tmp_path)
    fit.check(stage("rl", "rl.verl.trainer.n_gpus_per_node=1"), None)


def test_the_sizes_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    found = fit.model(lab.BASE, frozen_vision=True)
    assert found is not None
    config = json.loads((lab.BASE / "config.json").read_text())
    assert (found.vocabulary, found.hidden) == (config["vocab_size"], config["hidden_size"])
    whole = fit.model(lab.BASE, frozen_vision=False)
    assert whole is not None and whole.trained == found.trained + found.frozen and found.frozen > 0
    broken = make_checkpoint(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert fit.model(broken, True) is None and fit.model(tmp_path / "nowhere", True) is None


@pytest.mark.parametrize(
    ("said", "count", "memory"), [("A, of 3, 81559\nB, 40960\n", 2, 40960 * 2**20), ("A, [N/A]\n", 1, 0), ("", 0, 0)]
)
def test_nvidia_smi_is_asked_once_for_gpus_and_the_smallest_ones_memory(
    monkeypatch: pytest.MonkeyPatch, said: str, count: int, memory: int
) -> None:
    asked = []

    def nvidia_smi(argv: list[str], **_: Any) -> Any:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0, stdout=said)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    machine.cards.cache_clear()
    assert (len(machine.gpus()), machine.gpu_memory(), len(asked)) == (count, memory, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.gpus(), machine.gpu_memory()) == ([], 0)
    machine.cards.cache_clear()


def test_a_driver_that_hangs_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "SMI_SECONDS", 0.2)
    machine.cards.cache_clear()
    assert machine.cards() == ()
    machine.cards.cache_clear()


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
    assert "GPU memory" in capsys.readouterr().out


def test_a_cluster_tells_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = replace(
        stage("rl"), settings={**stage("rl").settings, "cluster": {"nodes": 2, "gpus": 8, "gpu_memory_gb": 80.0}}
    )
    assert fit.cards(placed) == Cards(16, 8, 80 * 10**9)

"""Choosing an SFT checkpoint: by the validation loss, by us, since the Trainer's own way restores nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from test_strategies import plan

from synergy import lab, machine
from synergy.driver import disk
from synergy.driver.plan import Step
from synergy.errors import StageFailed, UserError
from synergy.stages import Job, sft

LOSSES = {10: 0.9, 20: 0.4, 30: 0.5}


def finished(folder: Path, **settings: Any) -> Job:
    """A stage whose LLaMA-Factory has run: three epochs, a checkpoint each, the weights of epoch n shifted by n."""
    base = make_checkpoint(folder / "base")
    stage = plan("ablation/sft_best_epoch")["sft"]
    stage = replace(stage, settings={**stage.settings, **settings})
    data = folder / "data/sft"
    data.mkdir(parents=True)
    for name in ("train", "validation"):
        (data / f"{name}.json").write_text("[{}]")
    inputs = {"base": base, "model": base, "data": folder / "data"}
    job = Job(stage, "k" * 64, folder / "stage", folder / "stage/attempt-1", inputs, {"llamafactory": "/python"})
    job.attempt.mkdir(parents=True)
    out = make_checkpoint(job.work / "out", shift=3)
    for number, step in enumerate(LOSSES, start=1):
        make_checkpoint(out / f"checkpoint-{step}", shift=number)
    history = [{"step": step, "eval_loss": loss} for step, loss in LOSSES.items()]
    state = {"global_step": 30, "log_history": [{"step": 1, "loss": 2.0}, *history]}
    (out / "trainer_state.json").write_text(json.dumps(state))
    return job


def test_the_epoch_with_the_lowest_validation_loss_is_handed_on(tmp_path: Path) -> None:
    job = finished(tmp_path)
    figures = sft.collect(job, tmp_path / "best")
    assert (figures["chosen_step"], figures["eval_loss"]) == (20, 0.4)
    weights = (tmp_path / "best/model.safetensors").read_bytes()
    assert weights == (job.work / "out/checkpoint-20/model.safetensors").read_bytes()
    last = replace(job, stage=replace(job.stage, settings={**job.settings, "choose": "last"}))
    assert "chosen_step" not in sft.collect(last, tmp_path / "last")
    assert (tmp_path / "last/model.safetensors").read_bytes() == (job.work / "out/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("clocks", "pace"),
    [
        ((), None),
        (("0:00:09",), None),
        (("0:00:09", "0:00:12", "0:00:19"), 0.5),  # 10 s for steps 10 to 30
        (("0:00:50", "0:00:09", "0:01:09"), 6.0),  # the second attempt: a minute for steps 20 to 30
        (("23:59:50", "1 day, 0:00:10", "2 days, 0:00:00"), 4320.5),
        (("0:00:09", "an hour", "0:00:19"), 0.5),
    ],
)
def test_steps_and_pace_are_the_trainers_own(tmp_path: Path, clocks: tuple[str, ...], pace: float | None) -> None:
    job = finished(tmp_path)
    rows = [{"current_steps": 10 * n, "loss": 1.0, "elapsed_time": clock} for n, clock in enumerate(clocks, start=1)]
    (job.work / "out/trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = sft.collect(job, tmp_path / "best")
    assert figures["steps"] == 30, "however seldom it logs"
    assert figures.get("seconds_per_step") == pace


@pytest.mark.parametrize(("seen", "told"), [((), None), ((0.0, 0.0), None), ((94.12, 102.5, 98.0), 110.06)])  # GiB
def test_the_gpu_memory_that_was_taken_is_a_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seen: tuple[float, ...], told: float | None
) -> None:
    job = finished(tmp_path)
    monkeypatch.setattr(machine, "gpu_memory", lambda: 141 * 10**9)
    rows = [{"current_steps": n, "loss": 1.0, "vram_allocated": one} for n, one in enumerate(seen)]
    (job.work / "out/trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sft.collect(job, tmp_path / "best").get("gpu_memory_gb") == told


def test_steps_that_were_repeated_after_a_kill_are_told_once(tmp_path: Path) -> None:
    job = finished(tmp_path)
    rows = [
        {"current_steps": n, "loss": 10.0 * again + n} for n, again in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1))
    ]
    rows.insert(2, {"current_steps": 2, "eval_loss": 0.5})
    (job.work / "out/trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft.collect(job, tmp_path / "best")
    told = [json.loads(line) for line in (job.attempt / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("loss", "eval")) for row in told] == [
        (1, 1.0),
        (2, 12.0),
        (2, "eval"),
        (3, 13.0),
        (4, 14.0),
    ]


@pytest.mark.parametrize(
    ("choose", "epochs", "strategy", "saved"),
    [
        ("last", 1.0, "epoch", "no"),
        ("last", 2.0, "epoch", "epoch"),
        ("last", 1.0, "steps", "steps"),
        ("best", 1.0, "epoch", "epoch"),
        ("last", 2.0, "no", "no"),
        ("best", 2.0, "no", "epoch"),
    ],
)
@pytest.mark.parametrize("most", [-1, 200])
def test_the_only_epoch_is_not_written_twice(
    tmp_path: Path, choose: str, epochs: float, strategy: str, saved: str, most: int
) -> None:
    """Unless max_steps decides, which goes before the number of epochs."""
    job = finished(tmp_path)
    config = {**job.settings["config"], "num_train_epochs": epochs, "save_strategy": strategy, "max_steps": most}
    if most > 0 and strategy == "epoch":
        saved = "epoch"
    given = replace(job.stage, settings={**job.settings, "choose": choose, "config": config})
    assert sft.native(replace(job, stage=given))["save_strategy"] == saved
    assert sft.writes_once(given.settings) == (saved == "no")


def test_without_a_validation_loss_nothing_is_chosen(tmp_path: Path) -> None:
    job = finished(tmp_path)
    (job.work / "out/trainer_state.json").write_text('{"log_history": []}')
    with pytest.raises(StageFailed, match="eval_loss"):
        sft.collect(job, tmp_path / "out")
    config = sft.native(job)
    assert (config["eval_strategy"], config["save_strategy"], config["eval_dataset"]) == (
        "epoch",
        "epoch",
        "validation",
    )
    (tmp_path / "data/sft/validation.json").unlink()
    with pytest.raises(UserError, match=r"data\.validation"):
        sft.native(job)


def test_what_would_choose_wrongly_is_refused() -> None:
    stage = plan("sft")["sft"]
    with pytest.raises(UserError, match=r"last, best"):
        sft.check(replace(stage, settings={**stage.settings, "choose": "first"}), {})
    config = {**stage.settings["config"], "load_best_model_at_end": True}
    with pytest.raises(UserError, match=r"sft\.choose=best"):
        sft.check(replace(stage, settings={**stage.settings, "config": config}), {})


def test_a_checkpoint_per_epoch_takes_its_disk(tmp_path: Path) -> None:
    for name, kept in (("sft", 2), ("ablation/sft_best_epoch", 3)):
        step = Step(plan(name)["sft"], "k", {}, tmp_path, {"base": lab.BASE}, "run", "")
        native = (kept + 1) * (disk.WHOLE + disk.MOMENTS) + disk.WHOLE  # one is being written; and the final model
        assert disk.of_step(step, 100) == 100 + native * disk.parameters(lab.BASE)


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.0), (64, 0.0), (320, 0.05)])
def test_a_warm_up_of_less_than_a_step_is_none(count: int, ratio: float, tmp_path: Path) -> None:
    """The Trainer rounds it up to a whole step with learning rate 0, which for one step of SFT would be all of it."""
    job = finished(tmp_path, choose="last")
    config = {**job.stage.settings["config"], "per_device_train_batch_size": 32, "num_train_epochs": 2.0}
    job = replace(job, stage=replace(job.stage, settings={**job.stage.settings, "config": config}))
    (tmp_path / "data/sft/train.json").write_text(json.dumps([{}] * count))
    assert sft.native(job)["warmup_ratio"] == ratio


def test_a_resume_that_restored_no_weights_is_not_published(tmp_path: Path) -> None:
    job = finished(tmp_path)
    warning = "There were missing keys in the checkpoint model loaded: [{}]."  # the Trainer's
    (job.attempt / "log.txt").write_text(warning.format("'lm_head.weight'"))
    sft.collect(job, tmp_path / "tied")
    (job.attempt / "log.txt").write_text(warning.format("'model.visual.blocks.0.norm1.weight', 'lm_head.weight'"))
    with pytest.raises(StageFailed, match="not restored"):
        sft.collect(job, tmp_path / "out")

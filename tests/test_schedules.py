"""One learning-rate schedule over the rounds of a recipe: the arithmetic, the plug-ins, and what frameworks make of them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategies import plan

from synergy import environments, lab, paths
from synergy.data import records, writers
from synergy.data.records import Record
from synergy.driver import identity
from synergy.driver.warm import Warm
from synergy.errors import UserError
from synergy.stages import Job, Stage, rl, schedule, sft

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("verl")

PLUGINS = paths.ROOT / "launch" / "plugins"
sys.path.insert(0, str(PLUGINS))
import schedule_part  # noqa: E402
import verl_schedule_part  # noqa: E402
from schedule_part import Part  # noqa: E402

LR = 1e-3
COSINE = "+rl.verl.actor_rollout_ref.actor.optim.lr_scheduler_type=cosine"
PPO = ["rl.verl.algorithm.adv_estimator=gae"]


def optimizer() -> Any:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def rates(scheduler: Any, steps: int) -> list[float]:
    """The learning rates of the next steps."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def built_by_transformers(name: str, warm_up: float, steps: int) -> Any:
    return transformers.get_scheduler(
        name, optimizer(), num_warmup_steps=math.ceil(warm_up * steps), num_training_steps=steps
    )


def engine(part: Part | None) -> Any:
    """verl's FSDP engine as a class of its own, changed by the plug-in for a part."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    made = type("Engine", (FSDPEngine,), {})
    if part:
        verl_schedule_part.install(made, part)
    return made


def built_by_verl(name: str, warm_up: float, steps: int, part: Part | None = None) -> Any:
    from verl.workers.config import FSDPOptimizerConfig

    config = FSDPOptimizerConfig(
        lr=LR, lr_scheduler_type=name, lr_warmup_steps_ratio=warm_up, total_training_steps=steps, min_lr_ratio=0.1
    )
    one = object.__new__(engine(part))
    one.rank, one.optimizer_config = 1, config
    scheduler = one._build_lr_scheduler(optimizer())
    assert one.optimizer_config is config, "the engine keeps the config of its own run"
    return scheduler


def part_by_transformers(name: str, warm_up: float, steps: int, part: Part) -> Any:
    return schedule_part.begin(built_by_transformers(name, warm_up, part.whole(steps)), part.start(steps))


SCHEDULES = [
    *((built_by_transformers, part_by_transformers, name) for name in ("linear", "cosine", "constant_with_warmup")),
    *((built_by_verl, built_by_verl, name) for name in ("cosine", "constant")),
]
WARM_UP = st.one_of(st.just(0.0), st.floats(0.01, 0.6))


@pytest.mark.parametrize(("whole", "part", "name"), SCHEDULES)
@settings(deadline=None)  # the first example imports verl
@given(warm_up=WARM_UP, steps=st.integers(1, 9), rounds=st.integers(1, 5))
def test_the_rounds_of_a_recipe_run_one_schedule(
    whole: Callable[..., Any], part: Callable[..., Any], name: str, warm_up: float, steps: int, rounds: int
) -> None:
    parts = [rates(part(name, warm_up, steps, Part(k, rounds)), steps) for k in range(rounds)]
    assert list(itertools.chain(*parts)) == rates(whole(name, warm_up, steps * rounds), steps * rounds)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_rounds_of_unequal_length_lie_on_one_curve(lengths: list[int]) -> None:
    """The rate is a function of the share of the recipe that is done; a round's share is 1/R, however many steps it has."""
    rounds = len(lengths)
    for k, steps in enumerate(lengths):
        expected = [LR * (1 + math.cos(math.pi * (k + i / steps) / rounds)) / 2 for i in range(steps)]
        assert rates(part_by_transformers("cosine", 0.0, steps, Part(k, rounds)), steps) == pytest.approx(expected)


@pytest.mark.parametrize(("whole", "part", "name"), SCHEDULES)
@settings(deadline=None)
@given(steps=st.integers(2, 9), data=st.data())
def test_a_resumed_round_goes_on_at_the_same_rate(
    whole: Callable[..., Any], part: Callable[..., Any], name: str, steps: int, data: st.DataObject
) -> None:
    """Both frameworks save and load the state of scheduler and optimizer, after they built both anew."""
    done = data.draw(st.integers(1, steps - 1))
    one, two = (part(name, 0.2, steps, Part(1, 3)) for _ in range(2))
    rates(one, done)
    two.load_state_dict(one.state_dict())
    two.optimizer.load_state_dict(one.optimizer.state_dict())
    assert rates(two, steps - done) == rates(one, steps - done)


def test_the_part_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNERGY_SCHEDULE_PART", raising=False)
    assert schedule_part.read() is None
    monkeypatch.setenv(schedule.VARIABLE, schedule.env({schedule.SETTING: [1, 3]})[schedule.VARIABLE])
    assert schedule_part.read() == Part(1, 3)
    for wrong in ("3/3", "1", "1/x", "-1/3"):
        monkeypatch.setenv(schedule.VARIABLE, wrong)
        with pytest.raises(ValueError, match="k/R"):
            schedule_part.read()


def test_a_scheduler_that_follows_the_loss_has_no_parts() -> None:
    with pytest.raises(TypeError, match="no function of the step"):
        schedule_part.begin(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer()), 1)


# What strategies plan ------------------------------------------------------------------------------------------------


def parts(kind: str, recipe: str, *overrides: str) -> list[list[int] | None]:
    return [stage.settings[schedule.SETTING] for stage in plan(recipe, *overrides).values() if stage.kind == kind]


def test_sft_and_rl_rounds_have_a_schedule_each() -> None:
    assert parts("sft", "progressive", "recipe.rounds=4") == [[0, 3], [1, 3], [2, 3]], "the last round has no SFT"
    assert parts("sft", "interleaved") == [[0, 3], [1, 3], [2, 3]]
    assert parts("sft", "interleaved", "recipe.sample_first=false") == [[0, 2], [1, 2]], "the first round has none"
    assert parts("rl", "interleaved", COSINE) == parts("rl", "progressive", COSINE) == [[0, 3], [1, 3], [2, 3]]
    warm_up = "+rl.verl.actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1"
    assert parts("rl", "progressive", "recipe.rounds=2", warm_up) == [[0, 2], [1, 2]]
    assert parts("sft", "progressive", "recipe.rounds=2") == [None], "one SFT round is a whole schedule"


@pytest.mark.parametrize("recipe", ["sft", "two_stage", "data_mixing", "model_merging"])
def test_recipes_of_one_stage_have_whole_schedules(recipe: str) -> None:
    assert {*parts("sft", recipe), *parts("rl", recipe, COSINE)} == {None}


def test_a_flat_schedule_has_no_parts() -> None:
    assert set(parts("rl", "interleaved")) == {None}
    assert parts("sft", "interleaved", "sft.config.lr_scheduler_type=constant") == [None] * 3
    warm = "sft.config.lr_scheduler_type=constant_with_warmup"
    assert parts("sft", "interleaved", warm) == [[0, 3], [1, 3], [2, 3]]
    assert parts("sft", "interleaved", warm, "sft.config.warmup_ratio=0") == [None] * 3


@pytest.mark.parametrize(("recipe", "name"), [("sft", "sft"), ("rl", "rl")])
def test_a_whole_schedule_leaves_no_trace_in_the_key(recipe: str, name: str) -> None:
    stage = plan(recipe)[name]
    bare = {key: value for key, value in stage.settings.items() if key != schedule.SETTING}
    cut = {**bare, schedule.SETTING: [0, 3]}
    keys = [
        identity.key(identity.identity(dataclasses.replace(stage, settings=s), {}, {}))
        for s in (stage.settings, bare, cut)
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sft.config.lr_scheduler_type=reduce_lr_on_plateau", "follows the loss"),
        ("+sft.config.warmup_steps=10", r"sft\.config\.warmup_ratio"),
        ("+sft.config.lr_scheduler_kwargs={num_decay_steps: 3}", "counts steps"),
        ("+sft.env.USE_RAY=1", "USE_RAY"),
        ("+sft.config.use_mca=true", "use_mca"),
    ],
)
def test_sft_schedules_that_cannot_be_cut_are_refused(override: str, told: str) -> None:
    stage = plan("interleaved", override)["sft-1"]
    with pytest.raises(UserError, match=told):
        sft.check(stage, {})


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+rl.verl.actor_rollout_ref.actor.optim.lr_warmup_steps=5"], "lr_warmup_steps_ratio"),
        ([*PPO, "+rl.verl.critic.optim.lr_warmup_steps=5"], r"critic\.optim\.lr_warmup_steps_ratio"),
        ([COSINE, "rl.verl.actor_rollout_ref.actor.strategy=veomni"], "fsdp2"),
    ],
)
def test_rl_schedules_that_cannot_be_cut_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        rl.check(plan("interleaved", *overrides)["rl-1"], {})


# What the frameworks are given ---------------------------------------------------------------------------------------


def job(folder: Path, stage: Stage, name: str = "stage") -> Job:
    """A job on 32 questions with traces, and the lab's model."""
    data = folder / "data"
    if not data.exists():
        from PIL import Image

        (data / "records").mkdir(parents=True)
        Image.new("RGB", (140, 28)).save(data / "records/x.png")
        found = [Record(f"q{i}", "How many?", "3", ("x.png",), trace="<think>3</think>\\boxed{3}") for i in range(32)]
        records.write(data / "records/train.jsonl", found)
        writers.llamafactory(data / "sft", {"train": [(record, str(record.trace), "Think.") for record in found]})
        (data / "order.json").write_text(json.dumps([record.id for record in found]))
    inputs = {"base": lab.BASE, "model": lab.BASE, "data": data}
    pythons = {framework: str(environments.locate(framework)) for framework in environments.FRAMEWORKS}
    attempts = sorted((folder / name).glob("attempt-*"))
    made = Job(stage, "k" * 64, folder / name, folder / name / f"attempt-{len(attempts) + 1}", inputs, pythons)
    made.attempt.mkdir(parents=True)
    made.work.mkdir(exist_ok=True)
    return made


def with_settings(stage: Stage, **changed: Any) -> Stage:
    return dataclasses.replace(stage, settings={**stage.settings, **changed})


def test_only_a_part_starts_the_launcher_with_additions(tmp_path: Path) -> None:
    stage = plan("interleaved")["sft-2"]
    whole = sft.command(job(tmp_path, with_settings(stage, schedule_part=None), "whole"))
    part = sft.command(job(tmp_path, stage, "part"))
    assert whole and part
    assert Path(whole.argv[0]).name == "llamafactory-cli" and schedule.VARIABLE not in whole.env
    assert [Path(word).name for word in part.argv[1:3]] == ["synergy_llamafactory.py", "train"]
    assert part.env[schedule.VARIABLE] == "1/3"


def test_a_warm_up_is_counted_in_steps_of_the_whole_schedule(tmp_path: Path) -> None:
    """Of 8 steps a tenth is none (see test_sft_choose.py); of the 24 of three rounds it is two and a bit."""
    stage = plan("interleaved", "sft.config.per_device_train_batch_size=4", "sft.config.warmup_ratio=0.1")["sft-1"]
    assert sft.native(job(tmp_path, stage, "part"))["warmup_ratio"] == 0.1
    assert sft.native(job(tmp_path, with_settings(stage, schedule_part=None), "whole"))["warmup_ratio"] == 0.0
    without = plan("interleaved", "sft.config.warmup_ratio=null")["sft-1"]  # LLaMA-Factory's own default
    assert not sft.native(job(tmp_path, without, "null"))["warmup_ratio"]


def test_only_a_part_loads_the_plug_in_for_verl(tmp_path: Path) -> None:
    env = "ray_kwargs.ray_init.runtime_env.env_vars"
    tiny = yaml.safe_load((paths.ROOT / "recipes/rl/tiny.yaml").read_text())
    loaded = tiny["env"]["VERL_USE_EXTERNAL_MODULES"]
    for overrides, expected in (([], []), ([COSINE], ["'1/3'", f"'{loaded},verl_schedule_part'"])):
        made = job(tmp_path, plan("interleaved", *overrides)["rl-2"], f"rl-{len(overrides)}")
        assert rl.command(made)
        lines = (made.attempt / "overrides.txt").read_text().splitlines()
        assert [line.partition("=")[2] for line in lines if env in line] == expected


def in_a_fresh_python(code: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(PLUGINS), "VERL_PLATFORM": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_verl_loads_the_plug_in_before_anybody_has_its_engine() -> None:
    code = (
        "import verl, sys; early = 'verl.workers.engine' in sys.modules\n"
        "from verl.workers.engine import FSDPEngine\n"
        "print(early, FSDPEngine._build_lr_scheduler.__module__)"
    )
    hook = {"VERL_USE_EXTERNAL_MODULES": "verl_schedule_part"}
    assert in_a_fresh_python(code, **hook, SYNERGY_SCHEDULE_PART="1/3") == "False verl_schedule_part"


# Whether it is still needed, and still fits --------------------------------------------------------------------------


def fields(kind: Any, pattern: str) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if re.search(pattern, field.name)}


def test_neither_framework_can_begin_a_schedule_in_the_middle_by_itself() -> None:
    from llamafactory.hparams import FinetuningArguments
    from verl.workers.config import FSDPOptimizerConfig

    known = {"lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"}
    assert fields(transformers.TrainingArguments, "sched|warm") == known, "an option of transformers' own?"
    assert not fields(FinetuningArguments, "sched|warm"), "an option of LLaMA-Factory's own?"
    assert fields(FSDPOptimizerConfig, "sched|warm|step|cycle|min_lr") == {
        *("lr_scheduler_type", "warmup_style", "lr_warmup_steps", "lr_warmup_steps_ratio", "total_training_steps"),
        *("num_cycles", "zero_indexed_step", "min_lr_ratio"),
    }, "an option of verl's own?"


def test_what_is_wrapped_is_as_it_was() -> None:
    from llamafactory import launcher
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.sft.workflow import run_sft
    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithValueHead

    def names(function: Callable[..., Any]) -> Sequence[str]:
        return list(inspect.signature(function).parameters)

    assert names(CustomSeq2SeqTrainer.create_scheduler) == ["self", "num_training_steps", "optimizer"]
    assert "CustomSeq2SeqTrainer(" in inspect.getsource(run_sft)
    stock = inspect.getsource(transformers.Trainer.create_scheduler)
    assert "if self.lr_scheduler is None" in stock and "get_warmup_steps(num_training_steps)" in stock
    assert names(FSDPEngine._build_lr_scheduler) == ["self", "optimizer"]
    assert FSDPEngineWithValueHead._build_lr_scheduler is FSDPEngine._build_lr_scheduler, "a critic has its own"
    assert "optim_config = self.optimizer_config" in inspect.getsource(FSDPEngine._build_lr_scheduler)
    assert "optim.total_training_steps = optim_total_training_steps" in inspect.getsource(trainer_base)
    started = inspect.getsource(launcher.launch)
    assert started.count("file_name=__file__") == started.count("{file_name} {args}") == 2, (
        "torchrun starts another file"
    )


# LLaMA-Factory itself ------------------------------------------------------------------------------------------------


def trained(warm: Warm, made: Job, **environment: str) -> list[float]:
    """Runs LLaMA-Factory; the learning rates in its log, by step, a repeated step as it was last."""
    cold = sft.command(made)
    assert cold
    command = warm.command(cold)
    env = {**os.environ, **command.env, **environment}
    done = subprocess.run(command.argv, env=env, cwd=command.cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    log = (made.work / "out/trainer_log.jsonl").read_text().splitlines()
    assert all(row["vram_allocated"] == 0 for row in map(json.loads, log)), (
        "LLaMA-Factory's own figure, asked by RECORD_VRAM"
    )
    found = {row["current_steps"]: row["lr"] for row in map(json.loads, log) if "lr" in row}
    return [found[step] for step in sorted(found)]


@pytest.mark.slow
def test_two_rounds_of_sft_train_at_the_rates_of_one(warm_server: Warm, tmp_path: Path) -> None:
    small = ["sft.config.per_device_train_batch_size=8", "sft.config.warmup_ratio=0.3", "sft.config.save_steps=2"]
    planned = plan("interleaved", "recipe.sample_first=false", "recipe.sft_epochs=1", *small)
    one, two = (job(tmp_path, planned[name], name) for name in ("sft-2", "sft-3"))
    config = {**planned["sft-2"].settings["config"], "num_train_epochs": 2.0}
    whole = trained(
        warm_server, job(tmp_path, with_settings(planned["sft-2"], schedule_part=None, config=config), "whole")
    )
    assert len(whole) == 8 and whole[0] == 0 < whole[3] and whole.index(max(whole)) == 3, "a warm-up, then a decay"
    assert trained(warm_server, one) == pytest.approx(whole[:4])
    assert trained(warm_server, two) == pytest.approx(whole[4:])

    # as if the second round had been killed after its checkpoint at step 2
    for file in (two.work / "out").iterdir():
        if file.is_file() and file.name != "trainer_log.jsonl":
            file.unlink()
    (two.work / "out/checkpoint-4/trainer_state.json").write_text("torn")
    again = job(tmp_path, planned["sft-3"], "sft-3")
    assert sft.resume_point(again) == 2
    (two.work / "out/trainer_log.jsonl").write_text("")
    assert trained(warm_server, again) == pytest.approx(whole[6:])


@pytest.mark.slow
def test_the_additions_hold_under_torchrun(warm_server: Warm, tmp_path: Path) -> None:
    """Two processes, each with the open-ended templates (or it would not start) and the second half of the schedule."""
    stage = plan("progressive", "recipe.rounds=3", "sft.config.per_device_train_batch_size=8")["sft-2"]
    assert stage.settings["open_ended"] and stage.settings[schedule.SETTING] == [1, 2]
    made = job(tmp_path, with_settings(stage, config={**stage.settings["config"], "num_train_epochs": 1.0}))
    found = trained(warm_server, made, FORCE_TORCHRUN="1", NPROC_PER_NODE="2", OMP_NUM_THREADS="1")
    rate = stage.settings["config"]["learning_rate"] * stage.settings["weight"]
    assert found == pytest.approx([rate * (1 + math.cos(math.pi * share)) / 2 for share in (0.5, 0.75)])

"""GPU-hours: what the plan says beforehand against sums by hand and against what an H200 took, and what is told afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_fit import H200, LARGE, SMALL

from synergy import compose, lab, machine
from synergy import plan as plan_verb
from synergy.driver import cost, ledger, taken
from synergy.driver import plan as driver_plan
from synergy.driver.plan import Plan, Step
from synergy.stages import fit, memory

BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
QUESTIONS = 96


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: H200)
    monkeypatch.setattr(machine, "gpus", lambda: ["0"])
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: SMALL)


def planned(root: Path, *words: str) -> Plan:
    """As benchmarks/gpu/chain.py has it: 96 questions, batches of 32 with 8 rollouts of up to 512 tokens."""
    source = root / "data"
    if not source.exists():
        source.mkdir()
        rows = [
            {"id": str(n), "question": "?", "answer": "1", "images": ["a.png"], "trace": "t"} for n in range(QUESTIONS)
        ]
        (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("scale=qwen2_5_vl_3b", f"model.path={lab.BASE}", f"data.source={source}", "data.validation=null", BENCH)
    small = (
        "rl.verl.trainer.n_gpus_per_node=1",
        "rl.verl.data.train_batch_size=32",
        "lengths.rl=512",
        "budget.rl_epochs=1",
    )
    return driver_plan.of_config(
        compose.tasks([*own, *small, f"run.dir={root}/runs", "evaluate.runs=1", *words])[0].cfg
    )


def finished(todo: Plan, name: str, figures: dict[str, Any]) -> list[Step]:
    """The plan's steps, that of ``name`` done with these figures."""
    entry = ledger.Entry("k" * 64, "kind", name, "output", "d", "f", figures=figures)
    return [replace(s, action="reuse", entry=entry) if s.stage.name == name else s for s in todo.steps]


def hours(steps: list[Step], name: str, warm: bool = False) -> cost.Estimate:
    found = cost.estimate(next(step for step in steps if step.stage.name == name), steps, warm)
    assert found is not None
    return found


@pytest.mark.usefixtures("on_gpu")
def test_sums_by_hand(tmp_path: Path) -> None:
    of = 6 * SMALL.trained
    rl = hours(planned(tmp_path, "recipe=rl").steps, "rl")
    assert rl.rough and rl.hours * 3600 == pytest.approx(cost.RL_START.cold + of * 96 * 8 * (512 + 512) / cost.RL_FLOPS)
    todo = planned(tmp_path, "recipe=sft", "sft.gpus=1")
    sft = hours(todo.steps, "sft")
    assert sft.rough and sft.hours * 3600 == pytest.approx(cost.SFT_START.cold + of * 96 * 5 * 4096 / cost.SFT_FLOPS)
    told = finished(todo, "data", {"train": {"records": 96, "tokens_mean": 1000.0}})
    known = hours(told, "sft")
    assert not known.rough and known.hours * 3600 == pytest.approx(cost.SFT_START.cold + of * 96e3 * 5 / cost.SFT_FLOPS)
    todo = planned(tmp_path, "recipe=sft", "sft.gpus=1", "sft.batch=16", "+sft.config.max_steps=3")
    few = hours(finished(todo, "data", {"train": {"records": 96, "tokens_mean": 1000.0}}), "sft")
    assert few.hours * 3600 == pytest.approx(cost.SFT_START.cold + of * 3 * 16e3 / cost.SFT_FLOPS)


@pytest.mark.usefixtures("on_gpu")
def test_a_finished_rounds_lengths_serve_the_next(tmp_path: Path) -> None:
    todo = planned(tmp_path, "recipe=interleaved", "recipe.rounds=3", "recipe.sft_on=all", "sft.gpus=1")
    before = hours(todo.steps, "rl-2")
    after = hours(finished(todo, "rl-1", {"tokens_per_step": 32 * 8 * 700}), "rl-2")
    assert before.rough and not after.rough
    assert after.hours * 3600 == pytest.approx(cost.RL_START.cold + 6 * SMALL.trained * 32 * 8 * 700 / cost.RL_FLOPS)


@pytest.mark.usefixtures("on_gpu")
def test_what_an_h200_took(tmp_path: Path) -> None:
    """The newest chains of benchmarks/results/h200.md, warm: 272 s of RL in four steps of 16 questions, 67 s of SFT on 32
    rows."""
    words = ("recipe=interleaved", "recipe.sft_on=all", "sft.gpus=1", "rl.module=verl_fork")
    small = ("recipe.rounds=2", "budget.rl_steps=8", "rl.verl.data.train_batch_size=16")
    steps = finished(planned(tmp_path, *words, *small), "rl-1", {"tokens_per_step": 108_598})
    assert hours(steps, "rl-2", warm=True).hours * 3600 == pytest.approx(272, rel=0.1)
    steps = finished(
        planned(tmp_path, *words, "recipe.rounds=3"), "data", {"train": {"records": 96, "tokens_mean": 2860.0}}
    )
    assert hours(steps, "sft-2", warm=True).hours * 3600 == pytest.approx(67, rel=0.1)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("model", "nodes", "kind", "took"),
    [(SMALL, 1, "rl", 0.098), (LARGE, 2, "rl", 0.219), (SMALL, 1, "sft", 0.027), (SMALL, 1, "evaluate", 0.027)],
)
def test_what_cold_starts_on_a_cluster_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: memory.Model, nodes: int, kind: str, took: float
) -> None:
    """GPU-hours of the last runs in benchmarks/results/h200.md, which were over nodes of one H200 each: 0.085 were estimated
    for the first, 0.127 for the second, before cold starts had figures of their own."""
    monkeypatch.setattr(memory, "model", lambda base, frozen_vision: model)
    small = ("rl.verl.data.train_batch_size=16", f"budget.rl_steps={4 // nodes}", "sft.config.num_train_epochs=1")
    placed = ("cluster=ray", "cluster.address=http://a:1", "cluster.gpus=1", f"cluster.nodes={nodes}")
    todo = planned(tmp_path, "recipe=model_merging", *small, *placed)
    steps = finished(todo, "data", {"train": {"records": 96, "tokens_mean": 2860.0}})
    name = next(step.stage.name for step in steps if step.stage.kind == kind)
    for warm in (False, True):  # a fork lives on one host
        assert hours(steps, name, warm).hours == pytest.approx(took, rel=0.2)


@pytest.mark.usefixtures("on_gpu")
def test_a_warm_run_is_estimated_by_warm_starts(tmp_path: Path) -> None:
    words = ("recipe=two_stage", "sft.gpus=1")
    for module, start in (("verl_fork", cost.RL_START.warm), ("verl.trainer.main_ppo", cost.RL_START.cold)):
        cold, warm = (planned(tmp_path, *words, f"rl.module={module}", *more) for more in ((), ("run.warm=true",)))
        found, thought = cost.estimates([warm]), cost.estimates([cold])
        gain = {
            s.stage.name: 3600 * (thought[s.folder].hours - found[s.folder].hours)
            for s in cold.steps
            if s.folder in found
        }
        assert gain["two_stage"] == pytest.approx(cost.RL_START.cold - start)
        assert gain["sft"] == pytest.approx(cost.SFT_START.cold - cost.SFT_START.warm)
        assert gain["eval-base"] == pytest.approx(cost.SERVER_START.cold - cost.SERVER_START.warm)


def test_without_gpus_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = compose.tasks(["recipe=two_stage", f"run.dir={tmp_path}"])
    todo = driver_plan.of_config(tasks[0].cfg)
    assert (
        cost.estimates([todo]) == taken.cells(todo.steps, taken.HOURS, {}) == {} and cost.summary(todo.steps, {}) == ""
    )
    assert set(taken.before(todo.steps[-1], todo)) == {taken.DISK}
    plan_verb.show(tasks, [todo])
    plan_verb.show(tasks * 2, [todo, todo])
    assert "GPU" not in capsys.readouterr().out


@pytest.mark.usefixtures("on_gpu")
def test_plan_tells_what_is_to_come_and_how_far_it_was_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = planned(tmp_path, "recipe=two_stage", "sft.gpus=1")
    step = next(step for step in todo.steps if step.stage.name == "sft")
    thought = taken.before(step, todo)
    need = fit.needed(step.stage, lab.BASE)
    assert need is not None and thought[taken.MEMORY] == need[0].process / 1e9
    figures = taken.after(step.stage, thought, {taken.MEMORY: 100.0}, 360.0, 40 * 10**9)
    assert figures[cost.TAKEN] == 0.1 and figures[cost.ESTIMATED] == round(hours(todo.steps, "sft").hours, 4)
    assert (figures[taken.MEMORY], figures[taken.DISK]) == (100.0, 40.0)
    assert set(taken.after(step.stage, thought, {}, 360.0, 1)) == {name for name in figures if taken.MEMORY not in name}
    made = {taken.MEMORY: 99.0, "gpu_memory_gb_estimated": 90.0, taken.DISK: 40.0, "disk_gb_estimated": 0.05}
    done = finished(todo, "sft", {cost.TAKEN: 0.1, cost.ESTIMATED: 0.15, **made})
    words = ["recipe=two_stage", f"data.source={tmp_path}/data", BENCH, "scale=qwen2_5_vl_3b", f"model.path={lab.BASE}"]
    plan_verb.show(compose.tasks(words), [replace(todo, steps=done)])
    said = " ".join(capsys.readouterr().out.split())
    assert "GPU-hours to come; 0.10 GPU-hours taken, 0.15 estimated (+50%)" in said
    folded = {figure: taken.cells(done, figure, {})[step.folder] for figure in (taken.HOURS, taken.MEMORY, taken.DISK)}
    assert folded == {
        taken.HOURS: "0.10, estimated 0.15 (+50%)",
        taken.MEMORY: "99 GB, estimated 90 (-9%)",
        taken.DISK: "40.0 GB, estimated 50 MB (-100%)",
    }
    assert all(part in said for text in folded.values() for part in text.split())
    small = finished(todo, "sft", {taken.DISK: 0.001, "disk_gb_estimated": 0.05})
    assert taken.cells(small, taken.DISK, {})[step.folder] == "1 MB, estimated 50 MB", "an allowance"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that an estimate is asked for."""
    names: list[str] = []
    own = cost.estimate
    monkeypatch.setattr(cost, "estimate", lambda step, *rest: names.append(step.stage.name) or own(step, *rest))
    return names


@pytest.mark.usefixtures("on_gpu")
def test_plan_asks_once_for_each_estimate(tmp_path: Path, asked: list[str]) -> None:
    todo = planned(tmp_path, "recipe=two_stage", "sft.gpus=1")
    plan_verb.show(compose.tasks(["recipe=two_stage"]), [todo])
    assert asked == [step.stage.name for step in todo.steps]


@pytest.mark.usefixtures("on_gpu")
def test_a_sweep_counts_what_its_jobs_share_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    """Two stages goes on from the SFT of the first job; the base model's evaluation is finished."""
    plans = [planned(tmp_path, f"recipe={name}", "sft.gpus=1") for name in ("sft", "two_stage")]
    done = {cost.TAKEN: 0.1, cost.ESTIMATED: 0.15}
    plans = [replace(todo, steps=finished(todo, "eval-base", done)) for todo in plans]
    thought = (cost.estimate(step, plans[1].steps, False) for step in plans[1].steps if step.action != "reuse")
    left = [one.hours for one in thought if one is not None]
    asked.clear()
    plan_verb.show(compose.tasks(["-m", "recipe=sft,two_stage"]), plans)
    told = capsys.readouterr().out
    assert len(left) == 4 and len(asked) == len({*asked}), "SFT, RL, and their evaluations"
    assert f"about ~{sum(left):.2f} GPU-hours to come; 0.10 GPU-hours taken, 0.15 estimated (+50%)" in told
    assert "GPU hours" in told and all(f"~{one:.2f}" in told for one in left) and "0.10," in told


@pytest.mark.usefixtures("on_gpu")
def test_what_one_job_reuses_and_another_makes_again_is_still_to_come(tmp_path: Path) -> None:
    """As under run.keep=final, where the first no longer needs the weights of what it finished."""
    first, second = (planned(tmp_path, f"recipe={name}", "sft.gpus=1") for name in ("sft", "two_stage"))
    shared = next(step for step in second.steps if step.stage.name == "sft")
    done = replace(first, steps=finished(first, "sft", {cost.TAKEN: 0.1, cost.ESTIMATED: 0.15}))
    assert shared.folder not in cost.estimates([done])
    assert shared.folder in cost.estimates([done, second])

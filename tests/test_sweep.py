"""Sweeps: composed as Hydra composes them, shared stages counted once, seeds averaged by hand, one report, bad jobs told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import call
from test_report import Runs, Verdict, row_of

from synergy import compose, plan, run
from synergy.compose import Task
from synergy.config import Config
from synergy.driver import cost, ledger, sharing
from synergy.driver import plan as driver_plan
from synergy.driver.plan import Plan
from synergy.errors import StageFailed, UserError
from synergy.report import form, style, sweep, sweep_page

SIZES = {"One": 4, "Two": 2}


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 50)
        yield


@pytest.mark.parametrize(
    "argv",
    [
        ["recipe=rl", "seed=3"],
        ["-m", "recipe=base,sft,ablation/rl_kl_0", "seed=0,1", "+sft.config.adam_beta1=0.8"],
        [
            "--multirun",
            "recipe=progressive",
            "recipe.rounds=2,3",
            "seed=range(2)",
            "run.dir=x",
            "~sft.config.logging_steps",
        ],
        ["--multirun", "recipe=sft", "scale=tiny", "sft.config.learning_rate=1e-4,1e-3"],
    ],
)
def test_jobs_are_those_of_hydra_main(argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = compose.tasks(argv)
    monkeypatch.setattr("sys.argv", ["synergy", *argv, f"hydra.sweep.dir={tmp_path}"])
    theirs = compose.tasks([*argv, f"hydra.sweep.dir={tmp_path}"])
    assert [task.cfg for task in ours] == [task.cfg for task in theirs]
    assert [task.name for task in ours] == [task.name for task in theirs]
    assert [task.number for task in ours] == list(range(1, len(ours) + 1))


def test_names_tell_jobs_apart() -> None:
    found = compose.tasks(["-m", "recipe=sft,rl", "seed=0,1", "data.limit=5"])
    assert [task.name for task in found] == ["sft seed=0", "sft seed=1", "rl seed=0", "rl seed=1"]
    assert [task.recipe for task in found] == ["sft", "sft", "rl", "rl"]
    assert [task.recipe for task in compose.tasks(["-m", "recipe=sft", "data.limit=5,6"])] == [
        "sft data.limit=5",
        "sft data.limit=6",
    ]
    (alone,) = compose.tasks(["recipe=sft", "seed=7"])
    assert (alone.name, alone.number, alone.of) == ("sft", 1, 1)


class Jobs:
    """Finished jobs of one sweep; the benchmarks and the base model's evaluation are the same for all."""

    def __init__(self, root: Path, base: Verdict) -> None:
        self.root, self.shared = root, Runs(root, "base")
        self.shared.benchmarks(SIZES)
        self.shared.evaluate("base", SIZES, base)
        self.found: list[tuple[Task, Plan]] = []

    def add(self, recipe: str, seed: int, verdict: Verdict | None = None, seconds: float = 10.0) -> None:
        mine = Runs(self.root / f"{recipe}-{seed}", recipe)
        mine.steps = list(self.shared.steps)
        if verdict is not None:
            mine.add("model", "sft", {"base": "base"}, {}, seconds)
            mine.evaluate("model", SIZES, verdict)
            mine.steps[2:] = [replace(step, key=f"{step.key}-{recipe}-{seed}") for step in mine.steps[2:]]
        number = len(self.found) + 1
        task = Task(f"{recipe} seed={seed}", recipe, (f"recipe={recipe}", f"seed={seed}"), Config(seed=seed), number, 5)
        self.found.append((task, replace(mine.plan(), space=self.shared.space)))


def right(count: int, tokens: int) -> Verdict:
    """The first ``count`` questions of each level of each benchmark right in every run."""
    return lambda benchmark, level, question, i, run: (i < count, tokens)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Base: a question of each level right. SFT with two seeds: one more and two more; RL: as the base."""
    made = Jobs(tmp_path, right(1, 10))
    made.add("rl", 0, right(1, 12))
    made.add("sft", 0, right(2, 30), seconds=20.0)
    made.add("sft", 1, right(3, 34), seconds=30.0)
    made.add("base", 0)
    made.add("base", 1)
    return made


def test_seeds_are_averaged_by_hand(jobs: Jobs) -> None:
    told = sweep.gather(jobs.found)
    assert [(one.name, one.trainings) for one in told.strategies] == [("base", 1), ("sft", 2), ("rl", 1)]
    base, sft, rl = told.strategies
    # One: 2 and 3 of 4; Two: 2 of 2 with both seeds. Averages of the benchmarks: 75 and 87.5.
    row = sft.row("One", 3)
    assert row.accuracy == pytest.approx(62.5) and row.accuracy_std == pytest.approx(12.5 * 2**0.5)
    assert row.length_mean == pytest.approx(32) and row.length_std == pytest.approx(2 * 2**0.5)
    row = sft.row(told.main)
    assert row.accuracy == pytest.approx(81.25) and row.accuracy_std == pytest.approx(6.25 * 2**0.5)
    # Base: 1 of 4 and 1 of 2, on average 37.5. Gains of the seeds: 37.5 and 50.
    gain = sft.gain(told.main)
    assert gain is not None and gain.gain == pytest.approx(43.75)
    assert sft.spread[told.main, "all"] == pytest.approx(6.25 * 2**0.5)
    assert gain.ci_low is not None and gain.ci_high is not None and gain.ci_low < 43.75 < gain.ci_high
    assert rl.gain(told.main).gain == 0 and rl.row(told.main).accuracy_std is None  # type: ignore[union-attr]
    assert base.gains == () and base.row(told.main).accuracy == pytest.approx(37.5)
    assert [(one.task.name, one.gain) for one in told.outcomes[:2]] == [("rl seed=0", 0), ("sft seed=0", 37.5)]
    assert told.outcomes[3].gain is None


def test_each_seed_loses_its_own_base(tmp_path: Path) -> None:
    """Two bases, of 1 and 2 questions right: gains of 2 - 1 and 3 - 2, however the models differ."""
    one, two = Jobs(tmp_path / "a", right(1, 10)), Jobs(tmp_path / "b", right(2, 10))
    two.shared.steps = [replace(step, key=f"other-{step.key}") for step in two.shared.steps]
    one.add("sft", 0, right(2, 30))
    two.add("sft", 1, right(3, 30))
    told = sweep.gather([*one.found, *two.found])
    assert [strategy.name for strategy in told.strategies] == ["base of sft seed=0", "base of sft seed=1", "sft"]
    gain = told.strategies[2].gain("One")
    assert gain is not None and gain.gain == pytest.approx(25) and told.strategies[2].spread["One", "all"] == 0


def test_shared_stages_are_counted_once(jobs: Jobs, tmp_path: Path) -> None:
    found = sharing.distinct([todo for _, todo in jobs.found])
    assert [one.users for one in found] == [(0, 1, 2, 3, 4)] * 2 + [(0,), (0,), (1,), (1,), (2,), (2,)]
    saving = sharing.saving(found)
    assert (saving.stages, saving.distinct, saving.saved) == (16, 8, 8)
    assert (saving.seconds, saving.timed) == (80, 8)  # benchmarks and eval-base, 10 s each, not made four times again
    assert form.saving(saving, 5) == (
        "16 stages in 5 jobs, 8 of them distinct: sharing saves 8, about 1 min 20 s by the times in the ledger"
    )


def test_a_stage_that_one_job_reuses_and_another_makes_again_counts_as_made(jobs: Jobs) -> None:
    first, second, *_ = (todo for _, todo in jobs.found)
    shared = first.steps[1]
    again = [replace(step, action="run") if step.folder == shared.folder else step for step in second.steps]
    for plans in ([first, replace(second, steps=again)], [replace(second, steps=again), first]):
        actions = {one.step.folder: one.step.action for one in sharing.distinct(plans)}
        assert (shared.action, actions[shared.folder]) == ("reuse", "run")


def test_a_time_is_only_told_as_far_as_the_ledger_knows_it(jobs: Jobs) -> None:
    plans = [replace(todo, steps=[replace(step, entry=None) for step in todo.steps]) for _, todo in jobs.found]
    assert sharing.saving(sharing.distinct(plans)).timed == 0
    assert "by the times" not in form.saving(sharing.saving(sharing.distinct(plans)), 5)
    entry = jobs.shared.steps[1].entry
    assert entry is not None
    for number, seconds in enumerate((10.0, 40.0, 16.0)):  # other finished evaluations of a base model
        ledger.append(plans[0].space.ledger, replace(entry, key=f"{number}", seconds=seconds))
    saving = sharing.saving(sharing.distinct(plans))
    assert (saving.seconds, saving.timed) == (4 * 16, 4)
    assert "(which has those of 4)" in form.saving(saving, 5)


def test_the_report_over_all_jobs(jobs: Jobs) -> None:
    page = sweep_page.write(jobs.found)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    told = json.loads((page.parent / "report.json").read_text())
    assert page.parent.name.startswith("sweep-") and page.parent.parent == jobs.root / "reports"
    assert {file.stem for file in (page.parent / "figures").iterdir()} == {"tradeoff", "gains", "accuracy", "length"}
    assert "| sft | 2 | 81.2 ± 8.8 | +43.8 \\[" in markdown and "| base | 1 | 37.5 | – | 10.0 |" in markdown
    assert "| sft | +43.8 ± 8.8 | " in markdown and "not comparable in size" in markdown
    assert "| 51.4 | +1.1 |" in markdown and "sft answers most right: 81.2 ± 8.8 %" in html
    assert told["seeds"] == {"base": 1, "sft": 2, "rl": 1} and len(told["jobs"]) == 5
    assert row_of(told, "gains", model="sft", benchmark="One", level=1)["gain_std"] == pytest.approx(12.5 * 2**0.5)
    assert told["stages"] == {"all": 16, "distinct": 8, "saved_seconds": 80}
    assert sweep_page.write(jobs.found[::-1]) == page, "the same jobs in another order"


def test_an_unfinished_job_is_named(jobs: Jobs) -> None:
    task, todo = jobs.found[1]
    steps = [*todo.steps[:-1], replace(todo.steps[-1], action="run", why="not made yet", entry=None)]
    with pytest.raises(UserError, match=r"job 2 of 5 \(sft seed=0\).*eval-model \(not made yet\)"):
        sweep_page.write([jobs.found[0], (task, replace(todo, steps=steps))])


class Going:
    """run.action over the jobs, whose runs are told and fail where asked."""

    def __init__(self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks, self.found = [task for task, _ in jobs.found], jobs.found
        self.fail()
        monkeypatch.setattr(driver_plan, "of_config", lambda cfg, fetch=False: self.plans[id(cfg)])
        monkeypatch.setattr(run, "_run", self._run)

    def fail(self, *numbers: int) -> None:
        """From here on the jobs of these numbers fail, and no job has failed yet."""
        self.failing, self.begun = numbers, list[int]()
        self.plans = {id(task.cfg): todo for task, todo in self.found}

    def _run(self, cfg: Config, todo: Plan, server: object, plans: object) -> None:
        number = next(task.number for task in self.tasks if task.cfg is cfg)
        self.begun.append(number)
        if number in self.failing:
            steps = [step if step.stage.kind != "sft" else replace(step, action="run") for step in todo.steps]
            self.plans[id(cfg)] = replace(todo, steps=steps)
            error = StageFailed("stage model broke")
            error.folder = next(step.folder for step in steps if step.action != "reuse")
            raise error


def test_a_failure_stops_the_sweep_and_says_how_to_go_on(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    going = Going(jobs, monkeypatch)
    going.fail(2)
    with pytest.raises(
        StageFailed, match=r"job 2 of 5 \(sft seed=0\): stage model broke\n.*same command continues.*keep_going"
    ):
        run.action(going.tasks)
    assert going.begun == [1, 2] and not (jobs.root / "reports").exists()
    going.fail(3)
    with pytest.raises(StageFailed, match="job 3 of 5"):
        run.action(going.tasks)
    assert "report over the 2 finished jobs: " in capsys.readouterr().out
    going.fail()
    run.action(going.tasks)
    assert going.begun == [1, 2, 3, 4, 5]
    assert "report over all jobs: " in capsys.readouterr().out


def test_told_to_keep_going_a_sweep_fails_at_its_end_and_tries_nothing_twice(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, _ in jobs.found:
        task.cfg.run.keep_going = True
    task, todo = jobs.found[1]
    jobs.found.insert(2, (replace(task, cfg=replace(task.cfg)), todo))  # needs the stage that job 2 can't make
    jobs.found[:] = [(replace(one, number=i, of=6), plan) for i, (one, plan) in enumerate(jobs.found, 1)]
    going = Going(jobs, monkeypatch)
    going.fail(2)
    with pytest.raises(
        StageFailed, match=r"^2 of 6 jobs failed: job 2 \(sft seed=0\), job 3 \(sft seed=0\); .*tries them again"
    ):
        run.action(going.tasks)
    assert going.begun == [1, 2, 4, 5, 6]
    told = capsys.readouterr()
    assert "report over the 4 finished jobs: " in told.out
    assert "job 2 of 6 (sft seed=0): stage model broke" in told.err
    assert "job 3 of 6 (sft seed=0): needs model, which failed in job 2" in told.err


@pytest.mark.parametrize(("done", "which", "hours"), [(5, "all jobs", 8), (2, "the 2 finished jobs", 6)])
def test_a_sweep_ends_with_the_gpu_hours_of_its_stages(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: int, which: str, hours: int
) -> None:
    """An hour each. All jobs share two stages, and three have two of their own, the first two among them."""
    monkeypatch.setattr(sweep_page, "write", lambda ends: Path("page"))
    took = {cost.TAKEN: 1.0, cost.ESTIMATED: 1.5}
    for number, (task, todo) in enumerate(jobs.found):
        steps = [replace(s, entry=s.entry and replace(s.entry, figures=took)) for s in todo.steps]
        jobs.found[number] = (task, replace(todo, steps=steps))
    tasks = Going(jobs, monkeypatch).tasks
    run._report(tasks[:done], len(tasks))
    said = f"{which}, shared stages once: {hours}.00 GPU-hours taken, {1.5 * hours:.2f} estimated (+50%)\n"
    assert capsys.readouterr().out == f"{said}report over {which}: page\n"


def test_all_jobs_are_checked_before_the_first_begins(tmp_path: Path) -> None:
    done = call("run", "-m", "recipe=base,rl", "+rl.verl.algorithm.adv_estimater=grpo", f"run.dir={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("synergy: job 2 of 2 (rl): verl refuses the rl config")
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("stages"))


def test_a_sweep_needs_its_flag(tmp_path: Path) -> None:
    done = call("plan", "recipe=base,sft", f"run.dir={tmp_path}")
    assert done.returncode == 2 and "--multirun" in done.stderr and "Traceback" not in done.stderr


def test_hydra_s_own_flags_still_work(tmp_path: Path) -> None:
    done = call("plan", "recipe=sft", "seed=5", "--cfg", "job")
    assert done.returncode == 0 and "strategy: sft" in done.stdout and "seed: 5" in done.stdout
    assert "eval-base" not in done.stdout


def test_jobs_of_several_are_told_in_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan.action(compose.tasks(["-m", "recipe=base,sft,two_stage", f"run.dir={tmp_path / 'new'}"]))
    lines = capsys.readouterr().out.splitlines()
    found: Sequence[str] = [line for line in lines if line.startswith("eval-sft")]
    assert len(found) == 1 and "sft, two_stage" in found[0]
    assert sum(line.startswith("eval-base") and "all 3" in line for line in lines) == 1
    # base: 2, sft: 5, two_stage: 8, which begins with sft's.
    assert lines[-1] == "15 stages in 3 jobs, 8 of them distinct: sharing saves 7"
    assert not (tmp_path / "new").exists()

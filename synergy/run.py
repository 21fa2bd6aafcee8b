"""``synergy run recipe=NAME [key=value ...]``: runs a recipe to its report.

synergy run recipe=progressive               what is finished is reused, and a run that was killed is continued
synergy run -m recipe=sft,rl seed=0,1,2      several one after the other, to one more report over all of them
synergy run --help recipe=interleaved        the knobs of that recipe, and all other keys
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from synergy import cli, stages
from synergy.cluster.room import Room
from synergy.compose import Task
from synergy.config import Config, Run
from synergy.driver import cost, disk, display, execute, identity, keep, plan, sharing, state, store, warm
from synergy.driver.execute import Limits
from synergy.driver.plan import Plan, Step
from synergy.errors import StageFailed, UserError
from synergy.report import results
from synergy.stages import fit, lengths

STOPPED = "\nthe sweep stopped here, before its other jobs; what is finished is kept, and the same command continues it"
WAYS_ON = "run.keep_going=true goes on with the others"


def action(tasks: list[Task]) -> None:
    require_cluster(tasks)
    plans = []
    for task in tasks:
        with task.telling():
            plans.append(plan.of_config(task.cfg, fetch=True))
    with warm.beside(tasks[0].cfg.run.warm, plans) as server:  # imports while the settings are checked
        preflight(tasks, plans)
        require_space(plans)  # makes the run directory
        if len(tasks) == 1:
            _run(tasks[0].cfg, plans[0], server, plans)
        else:
            _sweep(tasks, plans, server)


def _sweep(tasks: Sequence[Task], plans: Sequence[Plan], server: warm.Warm | None) -> None:
    """Every job, and the report over those that were finished. Raises StageFailed if one was not: at once, or with
    run.keep_going after the others."""
    done: list[Task] = []
    failed: dict[str, Plan] = {}
    broken: dict[Path, str] = {}  # stages that failed: no other job tries them again
    for task, todo in zip(tasks, plans, strict=True):
        print(f"job {task.number} of {task.of}: {task.name}", flush=True)
        going, now = task.cfg.run.keep_going, todo
        try:
            with task.telling("" if going else f"{STOPPED}; {WAYS_ON}"):
                if task.number > 1:  # others have finished stages since
                    now = plan.of_config(task.cfg, fetch=True)
                for step in now.steps:
                    if step.folder in broken:
                        raise StageFailed(f"needs {step.stage.name}, which failed in {broken[step.folder]}")
                _run(task.cfg, now, server, [now, *failed.values(), *plans[task.number :]])
            done.append(task)
        except StageFailed as error:
            if not going:
                _report(done, len(tasks))
                raise
            cli.tell(str(error), 1)
            failed[f"job {task.number} ({task.name})"] = now
            if error.folder:
                broken.setdefault(error.folder, f"job {task.number}")
    _report(done, len(tasks))
    if failed:
        raise StageFailed(
            f"{len(failed)} of {len(tasks)} jobs failed: {', '.join(failed)}; their messages are above, and the same command "
            "tries them again"
        )


def _report(done: Sequence[Task], of: int) -> None:
    """The report over finished jobs, if there is something to compare."""
    ends = [(task, plan.of_config(task.cfg)) for task in done]
    if len(ends) > 1 and any(results.evaluates(todo) for _, todo in ends):
        from synergy.report import sweep_page

        which = "all jobs" if len(ends) == of else f"the {len(ends)} finished jobs"
        if said := cost.summary([one.step for one in sharing.distinct([todo for _, todo in ends])], {}):
            print(f"{which}, shared stages once: {said}", flush=True)
        print(f"report over {which}: {sweep_page.write(ends)}", flush=True)


def require_cluster(tasks: Sequence[Task]) -> None:
    """Raises UserError for a driver that should work in a Ray cluster and whose environment names none. Ray names it to its
    jobs, the batch script to its driver; without a name Ray would look, for long, for any cluster that this host ever had."""
    if any(task.cfg.cluster.kind == "ray" for task in tasks) and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "cluster=ray: this process is no job of a Ray cluster (RAY_ADDRESS is not set); send it there: synergy submit, "
            "with the same words"
        )


def require_space(plans: Sequence[Plan]) -> None:
    """Raises UserError unless all that the plans will write has room, and their store takes it."""
    steps = [one.step for one in sharing.distinct(plans)]
    for space in dict.fromkeys(todo.space for todo in plans):
        plan.require_space(space, disk.needed([step for step in steps if step.folder.is_relative_to(space.root)]))
        sent = [step for step in steps if step.folder.is_relative_to(space.root) and step.stored is None]
        if space.store and sent:  # who only reads needs no right to write
            store.probe(space.store, disk.published(sent))


def preflight(tasks: Sequence[Task], plans: Sequence[Plan]) -> None:
    """Every stage of every job that will run checks its settings, before the first one starts."""
    seen = set()
    for task, todo in zip(tasks, plans, strict=True):
        with task.telling():
            for step in todo.steps:
                stage = (step.folder, identity.canonical(dict(step.stage.settings)))
                if step.action != "reuse" and stage not in seen:
                    seen.add(stage)
                    stages.kind(step.stage.kind).check(step.stage, todo.pythons)
                    fit.check(step.stage, sized := _sized(step, todo))
                    lengths.check(step.stage, sized)


def _sized(step: Step, todo: Plan) -> Path | None:
    """A checkpoint of the size of the step's model: its base, the model itself, or the plan's base."""
    places = [step.inputs[role] for role in ("base", "model") if role in step.inputs]
    places += [one.inputs["base"] for one in todo.steps if "base" in one.inputs]
    return next((place for place in places if (place / "config.json").is_file()), None)


def finish(cfg: Config, todo: Plan, server: warm.Warm | None, plans: Sequence[Plan]) -> None:
    """Runs what is not finished of a plan. plans: this one, and all others of the command that are not done: what they need
    stays."""
    keeper = keep.Keeper.of(cfg.run.keep, plans)
    plan.require_space(todo.space, disk.needed(todo.steps))
    with display.watcher(todo.steps) as screen, state.recording(todo, screen) as watch:
        execute.run(todo, _limits(cfg.run), watch, server, keeper, Room.of(cfg.cluster))


def _run(cfg: Config, todo: Plan, server: warm.Warm | None, plans: Sequence[Plan]) -> None:
    finish(cfg, todo, server, plans)
    if not results.evaluates(todo):
        print(f"{todo.steps[-1].stage.note}: {todo.steps[-1].folder / 'output'}")
        return
    from synergy.report import build  # draws with matplotlib: not before there is something to draw

    done = plan.of_config(cfg)
    if said := cost.summary(done.steps, {}):  # nothing is left to be estimated
        print(said, flush=True)
    print(f"report: {build.write(done)}", flush=True)


def _limits(settings: Run) -> Limits:
    hours = settings.stage_hours
    return Limits(
        settings.stall_minutes * 60,
        None if hours is None else hours * 3600,
        settings.retries,
        settings.keep_work,
        settings.verify,
        settings.takeover,
    )


def main() -> int:
    return cli.with_config(action, __doc__)


if __name__ == "__main__":
    sys.exit(main())

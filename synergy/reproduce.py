"""``synergy reproduce table=6``: the paper's tables and Figure 1 in our numbers, each beside the paper's own with a verdict.

  synergy reproduce table=6 seed=0,1,2             runs what is missing of the recipes that make its rows, then reports
  synergy reproduce all plan=true                  says what would run, and why, without doing it
  synergy reproduce figure=1 scale=qwen2_5_vl_7b   any setting of the config; several values only of seed
  synergy reproduce checkpoints=models.yaml        evaluates given models, trains none (synergy/checkpoints.py has the form)

table is 1, 2, 3, 5, 6, 7, or several with commas; with checkpoints, all is meant where none is named. A recipe that can't be
run as asked is told with the reason, and so is one that fails; the others go on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from synergy import checkpoints, cli, plan, run
from synergy.checkpoints import Checkpoint
from synergy.compose import MANY, Task
from synergy.driver import plan as driver_plan
from synergy.driver import warm
from synergy.driver.plan import Plan
from synergy.errors import StageFailed, UserError
from synergy.report import specs

Job = tuple[Task, Plan]
Missing = list[tuple[Task, UserError | StageFailed]]
OWN = re.compile(r"(table|figure)=.*|all")


@dataclass(frozen=True)
class Request:
    """names: of specs; given: models to evaluate, if it is about such; only_plan: do nothing; words: for Hydra."""

    names: Sequence[str]
    given: Sequence[Checkpoint]
    only_plan: bool
    words: Sequence[str]


def parse(words: Sequence[str]) -> Request:
    """Raises UserError for words that ask for no table, or for what the paper does not have."""
    own = [word for word in words if OWN.fullmatch(word)]
    files = [word.partition("=")[2] for word in words if word.startswith("checkpoints=")]
    plans = [word.partition("=")[2].lower() for word in words if word.startswith("plan=")]
    rest = [w for w in words if w not in own and w not in MANY and not w.startswith(("checkpoints=", "plan="))]
    if any(word.lstrip("+~").partition("=")[0] == "recipe" for word in rest):
        raise UserError("reproduce chooses the recipes by table or figure; leave recipe= out, or use synergy run")
    if plans[1:] or set(plans) - {"true", "false"}:
        raise UserError(f"plan={','.join(plans)}: true shows what would run, false runs it")
    if empty := [word for word in words if word in ("table=", "figure=", "checkpoints=")]:
        raise UserError(
            f"{' '.join(empty)} names nothing: give a number (table=6) or a file, or say all for all of them"
        )
    if files[1:]:
        raise UserError("checkpoints= takes one file")
    if not own and not files:
        raise UserError("say what to reproduce: table=6 (1, 2, 3, 5, 6, 7), figure=1, all, or checkpoints=FILE.yaml")
    names = specs.choose(own or [specs.ALL])
    given = checkpoints.read(Path(files[0]).expanduser()) if files else []
    recipes = "checkpoints" if given else ",".join(specs.recipes(names))
    return Request(names, given, plans == ["true"], ["-m", f"recipe={recipes}", *rest])


def action(request: Request, tasks: list[Task]) -> None:
    if request.given:
        tasks = [replace(task, cfg=checkpoints.configured(task.cfg, list(request.given))) for task in tasks]
    _require_seeds_only(request, tasks)
    if not request.only_plan:
        run.require_cluster(tasks)
    jobs, missing = planned(tasks, fetch=not request.only_plan)
    if jobs and request.only_plan:
        plan.show([task for task, _ in jobs], [todo for _, todo in jobs])
    for name, why in reasons(tasks, missing).items():
        print(f"{name}: not run: {why}", flush=True)
    failed: Missing = []
    if jobs and not request.only_plan:
        failed = complete(jobs)
        _report(request, jobs, tasks, missing + failed)
    if failed or not jobs:
        told = "; ".join(f"{name}: {why}" for name, why in reasons(tasks, failed or missing).items())
        raise type((failed or missing)[0][1])(f"{'some' if jobs else 'all'} recipes could not be run. {told}")


def _require_seeds_only(request: Request, tasks: Sequence[Task]) -> None:
    wanted = {"checkpoints"} if request.given else set(specs.recipes(request.names))
    if other := sorted({task.recipe for task in tasks} - wanted):
        raise UserError(f"only seed may have several values here, not {other[0].partition(' ')[2]}; use synergy run -m")
    if request.given and len(tasks) > 1:
        raise UserError("given checkpoints are not trained, so they have no seeds: give seed one value, or none")


def planned(tasks: Sequence[Task], fetch: bool) -> tuple[list[Job], Missing]:
    """The plans of the tasks, and why others have none. fetch: they are about to run, so their settings are checked too."""
    jobs: list[Job] = []
    missing: Missing = []
    for task in tasks:
        try:
            todo = driver_plan.of_config(task.cfg, fetch)
            if fetch:
                run.preflight([task], [todo])
            jobs.append((task, todo))
        except UserError as error:
            missing.append((task, _cause(error)))
    return jobs, missing


def complete(jobs: Sequence[Job]) -> Missing:
    """Runs what is not finished. Returns those that failed; what builds on a stage that failed is not tried again."""
    left = [(task, todo) for task, todo in jobs if not all(step.here for step in todo.steps)]
    if not left:
        return []
    plans = [todo for _, todo in left]
    run.require_space(plans)
    failed: Missing = []
    broken: set[Path] = set()
    stopped: list[Plan] = []
    with warm.beside(left[0][0].cfg.run.warm, plans) as server:
        for number, (task, _) in enumerate(left, 1):
            print(f"job {number} of {len(left)}: {task.name}", flush=True)
            try:
                todo = driver_plan.of_config(task.cfg, fetch=True)
                stuck = next((step.stage.name for step in todo.steps if step.folder in broken), None)
                if stuck is not None:
                    raise StageFailed(f"it builds on stage {stuck}, which failed")
                run.finish(task.cfg, todo, server, [todo, *plans[number:], *stopped])
            except (UserError, StageFailed) as error:
                failed.append((task, error))
                after = driver_plan.of_config(task.cfg)
                stopped.append(after)
                broken |= set([step.folder for step in after.steps if step.action != "reuse"][:1])
    return failed


def _cause(error: UserError) -> UserError:
    """Without the number of the job, which says nothing here."""
    return error.__cause__ if isinstance(error.__cause__, UserError) else error


def reasons(tasks: Sequence[Task], missing: Missing) -> dict[str, str]:
    """Recipe, or recipe and seed where other seeds are there -> why it is not."""
    found: dict[str, str] = {}
    for task, error in missing:
        whole = all(any(one is other for one, _ in missing) for other in tasks if other.recipe == task.recipe)
        found.setdefault(task.recipe if whole else task.name, str(error))
    return found


def _report(request: Request, jobs: Sequence[Job], tasks: Sequence[Task], missing: Missing) -> None:
    gone = {id(task) for task, _ in missing}
    done = [(task, _again(task, todo)) for task, todo in jobs if id(task) not in gone]
    if done:
        from synergy.report import reproduce, reproduce_page  # draw with matplotlib

        if request.given:
            ((task, todo),) = done
            made = reproduce.given(request.given, task, todo)
        else:
            made = [reproduce.end(task.recipe, task.recipe, task, todo) for task, todo in done]
        print(f"report: {reproduce_page.write(request.names, made, reasons(tasks, missing))}", flush=True)


def _again(task: Task, todo: Plan) -> Plan:
    """The plan after it was run; of one that had nothing to run, itself."""
    return todo if all(step.here for step in todo.steps) else driver_plan.of_config(task.cfg)


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    return cli.ended(_asked)


def _asked() -> int:
    request = parse(sys.argv[1:])
    sys.argv = [sys.argv[0], *request.words]
    return cli.with_config(partial(action, request))


if __name__ == "__main__":
    sys.exit(main())

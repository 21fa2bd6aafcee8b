"""The console script ``synergy <verb>`` and what all verbs share: composing configs, and telling errors.

Exit codes: 0 done, 1 a framework failed, 2 something the user can mend, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from synergy import interrupt
from synergy.errors import StageFailed, UserError

if TYPE_CHECKING:
    from synergy.compose import Task

VERBS = {
    "run": "run a recipe to its report; what is finished is reused",
    "submit": "send a run to a Ray cluster as a job (cluster=ray cluster.address=...), and follow it",
    "job": "list, follow or stop such jobs (synergy job logs ID)",
    "plan": "say what run would do, and why, without doing it",
    "data": "prepare published data sets for all frameworks, checked (synergy data prepare)",
    "push": "upload a data set that recipe=distill made to the Hugging Face hub",
    "tag": "tell the difficulty level of every question of a set",
    "status": "say what a run directory holds and what runs there now",
    "report": "draw the report of a recipe from finished stages, or compare reports",
    "reproduce": "make the paper's tables in our numbers, beside its own; from given checkpoints too",
    "clean": "say what in a run directory may go; with --yes it goes",
    "doctor": "say what is installed, what is missing and how to mend it",
}


def main() -> int:
    """Entry of the console script."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in VERBS:
        lines = "".join(f"  synergy {name:<10}{text}\n" for name, text in VERBS.items())
        print(f"usage:\n{lines}each verb takes --help; for example: synergy plan recipe=progressive", flush=True)
        return 0 if verb in ("-h", "--help") else tell(f"no such verb: {verb}; verbs: {', '.join(VERBS)}", 2)
    import importlib

    sys.argv = [f"synergy {verb}", *sys.argv[2:]]
    code: int = importlib.import_module(f"synergy.{verb}").main()
    return code


def with_config(action: Callable[[list[Task]], int | None], usage: str = "") -> int:
    """Composes the jobs of the command line, one or with ``-m`` several, and calls the action with them; returns the exit
    code, the action's own if it has one. usage: of the verb; ``--help`` begins with it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us instead of Hydra's own report
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from synergy import compose

    if {"-h", "--help"} & set(sys.argv):
        print(usage)
        if not any(word.startswith("recipe=") for word in sys.argv):
            sys.argv.append("recipe=progressive")  # the help shows a composed config, and Hydra wants a recipe for it
    interrupt.listen()

    def act() -> int | None:
        try:
            tasks = compose.tasks(sys.argv[1:])
            return action(tasks) if tasks else 0
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_reason(error)) from error

    return ended(act)


def ended(act: Callable[[], int | None]) -> int:
    """The exit code of what a verb does, its own if it has one. Every known error is one message on stderr."""
    try:
        return act() or 0
    except KeyboardInterrupt:
        return tell(
            "interrupted; nothing that this command started here runs any more, and the same command goes on from there",
            130,
        )
    except StageFailed as error:
        return tell(_reason(error), 1)
    except UserError as error:
        return tell(_reason(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        return tell(
            f"{error.filename}: {error.strerror}; see that it is there, that you may read and write it and that its disk has "
            "room, or name another place",
            2,
        )


def tell(message: str, code: int) -> int:
    print(f"synergy: {message}", file=sys.stderr, flush=True)
    return code


def _reason(error: BaseException) -> str:
    """The message of an error and of what caused it, without repetition."""
    found, seen = [str(error).strip()], error.__cause__
    while seen is not None and not isinstance(error, UserError):
        if str(seen).strip() and str(seen).strip() not in found[0]:
            found.append(str(seen).strip())
        seen = seen.__cause__
    return "\n".join(found)


if __name__ == "__main__":
    sys.exit(main())

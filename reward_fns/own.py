"""A user's own reward function: loaded from its file, called, its result checked, the rollout recorded.

verl and the sampling program call `compute_score` here; $SYNERGY_REWARD (JSON: path, name, kwargs) says whose function
stands behind it, without it the project's own. Run as a program (python -m reward_fns.own) it tries the user's function on
three responses, before any long work.
"""

import inspect
import json
import math
import os
import reprlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from reward_fns import accuracy_format, length, rollouts
from reward_fns.choices import read_choices

WANTED = "a finite number, or a dict with a finite score and, if it likes, acc and format from 0 to 1"
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
MODULE = "synergy_own_reward"
PROBE = ("<think>3 and 4 make 7.</think>\n\\boxed{7}", "<think>3 and 4 make 8.</think>\n\\boxed{8}", "")
"""A right answer to a question whose answer is 7, a wrong one, and no response at all."""
_loading = threading.Lock()


class RewardError(Exception):
    """The user's function raised, or returned nonsense; the message says what, where and for which question."""


@dataclass(frozen=True)
class Own:
    """A user's function: the file, its name there, and the keywords that it gets beside verl's four."""

    path: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    tokenizer: str | None = None,
    **given: Any,
) -> dict[str, float]:
    """Reward of one rollout, with the keys of accuracy_format.compute_score. given: reward_kwargs.

    Raises RewardError, after the driver was told (rollouts.fail).
    """
    chosen = os.environ.get("SYNERGY_REWARD")
    if not chosen:
        return accuracy_format.compute_score(
            data_source, solution_str, ground_truth, extra_info, tokenizer=tokenizer, **given
        )
    own, info = Own(**json.loads(chosen)), extra_info or {}
    prefix, started = str(info.get("prefix") or ""), time.perf_counter()
    try:
        tokens = length.count(solution_str, tokenizer)
        parts = call(own, data_source, prefix + solution_str, ground_truth, info, given)
    except Exception as error:  # also one of ours must not pass for a rollout that failed
        rollouts.fail(str(error) if isinstance(error, RewardError) else f"question {info.get('id')}: {error!r}")
        raise
    seconds = round(time.perf_counter() - started, 6)
    result = {**parts, "length": float(tokens), "broken": 0.0}
    rollouts.record(result, info, solution_str, prefix, answer=None, rule="own", seconds=seconds)
    return result


def load(own: Own) -> Callable[..., Any]:
    """The user's function; its file is run once per process. Raises RewardError."""
    with _loading:
        module = sys.modules.get(MODULE)
        if module is None or module.__file__ != own.path:
            spec = spec_from_file_location(MODULE, own.path)
            if spec is None or spec.loader is None:
                raise RewardError(f"{own.path} is no Python file")
            module = module_from_spec(spec)
            sys.modules[MODULE] = module  # dataclasses look their module up there
            try:
                spec.loader.exec_module(module)
            except (Exception, SystemExit) as error:
                del sys.modules[MODULE]
                raise RewardError(f"{own.path} can't be loaded: {_told(error, own.path)}") from error
    function = getattr(module, own.name, None)
    if not callable(function):
        there = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(f"{own.path} has no function {own.name}; it has: {', '.join(there) or 'none'}")
    return function


def call(
    own: Own, data_source: str, response: str, gold: Any, info: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, float]:
    """score, acc (right or not; score > 0.5 where the function doesn't say) and format of a whole response, prefix included.

    given: keywords that verl adds. Raises RewardError with the question's id.
    """
    asked = f"for question {str(info.get('id', ''))!r}"
    told = {**info, "choices": read_choices(info.get("choices"))}
    values = (data_source, response, gold, told)
    keywords = {**given, **own.kwargs, **dict(zip(ARGUMENTS, values, strict=True))}
    function = load(own)
    try:
        result = function(**keywords)
    except (Exception, SystemExit) as error:
        raise RewardError(f"{own} raised {_told(error, own.path)}, {asked}") from error
    parts = result if isinstance(result, Mapping) else {"score": result}
    score = _number(parts.get("score"))
    if score is None:
        raise RewardError(f"{own} returned {reprlib.repr(result)} {asked}; wanted: {WANTED}")
    shares = {"acc": _number(parts.get("acc", score > 0.5)), "format": _number(parts.get("format", 0.0))}
    for name, share in shares.items():
        if share is None or not 0 <= share <= 1:
            raise RewardError(f"{own} returned {name}={reprlib.repr(parts[name])} {asked}; wanted: {WANTED}")
    return {"score": score, **{name: float(share) for name, share in shares.items() if share is not None}}


def problem(own: Own) -> str | None:
    """What is wrong with a user's function, as far as its signature and three calls tell; None if nothing is."""
    try:
        function = load(own)
        if inspect.iscoroutinefunction(function):
            return f"{own} is async; a plain function is wanted"
        try:
            inspect.signature(function).bind(**{**own.kwargs, **dict.fromkeys(ARGUMENTS)})
        except (TypeError, ValueError) as error:
            return f"{own} can't be called: {error}; its arguments should be ({', '.join(ARGUMENTS)}, **kwargs)"
        for response in PROBE:
            info = {"id": "probe", "split": "probe", "index": 0, "choices": "", "prefix": ""}
            call(own, "synergy", response, "7", info, {})
    except RewardError as error:
        return str(error)
    return None


def _number(value: Any) -> float | None:
    """A finite number, of Python, numpy or torch; None for anything else."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return found if math.isfinite(found) else None


def _told(error: BaseException, path: str) -> str:
    """An exception as one line, with the last line of the user's file that was reached."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"{text} (line {lines[-1]})" if lines else text


def main() -> int:
    """Says "ok", or what is wrong, as the last line of its output."""
    found = problem(Own(**json.loads(os.environ["SYNERGY_REWARD"])))
    print(found or "ok", flush=True)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())

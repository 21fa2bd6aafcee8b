"""GPU-hours of a stage: estimated from measured throughput before it runs, and held against what it took.

SFT and RL: start-up, and 6 FLOPs a trained parameter and token at the rate that one H200 reached with Qwen2.5-VL 3B
(benchmarks/results/h200.md; for SFT in the trainer, for RL over the whole step, rollouts included). Evaluation and sampling:
start-up, and tokens at the rate of rollouts there, in proportion to the parameters. Other GPUs are taken for H200s, and several
for as many times one. Start-up is warm or cold (``run.warm``), and does not follow the model's size: a cold RL stage took 197 s
beside its steps with 3B on a cluster's node, and 310 s with 7B over two.

An estimate is rough (~) where something is not known yet: how long responses are, until a finished stage of the plan tells; how
long traces are, until the data are prepared; which questions are zero-pass, where SFT takes those: all are counted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synergy import machine
from synergy.cluster import needs
from synergy.driver import disk
from synergy.driver.warm import VERL as WARM_VERL
from synergy.stages import Stage, fit, memory, sft_length, within_step

if TYPE_CHECKING:
    from synergy.driver.plan import Plan, Step


class Start(NamedTuple):
    """Seconds of a stage beside its steps or answers: the check of its model, start, saving, publishing. cold: each process
    imports for itself, and verl starts Ray."""

    warm: float
    cold: float


SFT_START, SFT_FLOPS = Start(57.0, 65.0), 175e12
"""Seconds; FLOPs a second."""
RL_START, RL_FLOPS = Start(104.0, 210.0), 48e12
SERVER_START, SERVER_TOKENS = Start(55.0, 90.0), 7000 * 3.75e9
"""Seconds; tokens a second times parameters."""
PROMPT, RESPONSE, TRACE = 512, 1024, 4096
"""Tokens where nothing is known, if the limits allow them: of a question with its image, of a response, of an SFT row."""
TAKEN, ESTIMATED = "gpu_hours", "gpu_hours_estimated"
"""Figures of a finished stage."""


@dataclass(frozen=True)
class Estimate:
    """GPU-hours; rough: something about them is not known yet."""

    hours: float
    rough: bool

    def __str__(self) -> str:
        return f"{'~' if self.rough else ''}{self.hours:.2f}"


@dataclass(frozen=True)
class _Tokens:
    count: float
    rough: bool = False


def gpus(stage: Stage) -> int:
    """That the stage holds while it runs; 0: none."""
    if (placed := needs.of(stage)) is not None:
        return placed.nodes * placed.gpus
    if stage.kind not in _TOKENS or not machine.gpus():
        return 0
    if stage.kind in ("sft", "rl"):
        return fit.cards(stage).count
    return min(int(stage.settings.get("replicas") or 64), len(machine.gpus()))


def starts_warm(stage: Stage, warm: bool) -> bool:
    """Whether the stage finds its libraries imported. warm: the run's setting, of which a stage on a cluster's nodes has
    nothing, nor RL but by verl_fork."""
    return warm and needs.of(stage) is None and (stage.kind != "rl" or stage.settings["module"] == WARM_VERL)


def estimate(step: Step, steps: Sequence[Step], warm: bool) -> Estimate | None:
    """steps: of the whole plan; warm: ``run.warm``. None for a stage without GPUs, or of a model that is not there yet."""
    stage, count = step.stage, gpus(step.stage)
    base = next((one.inputs["base"] for one in (step, *steps) if "base" in one.inputs), None)
    of = memory.model(base, True) if count and base is not None else None
    if of is None:
        return None
    tokens = _TOKENS[stage.kind](step, {one.stage.name: one for one in steps})
    if stage.kind in ("sft", "rl"):
        start, flops = (SFT_START, SFT_FLOPS) if stage.kind == "sft" else (RL_START, RL_FLOPS)
        seconds = 6.0 * of.trained * tokens.count / (flops * count)
    else:
        start, seconds = SERVER_START, tokens.count * of.whole / (SERVER_TOKENS * count)
    seconds += start.warm if starts_warm(stage, warm) else start.cold
    return Estimate(seconds * count / 3600, tokens.rough)


def estimates(plans: Sequence[Plan]) -> dict[Path, Estimate]:
    """By folder, of the stages that are not finished; one that several plans make once, as the first of them knows it."""
    mine = {
        step.folder: (step, todo.steps, todo.warm)
        for todo in reversed(plans)
        for step in todo.steps
        if step.action != "reuse"
    }
    left = {folder: estimate(*one) for folder, one in mine.items()}
    return {folder: found for folder, found in left.items() if found is not None}


def summary(steps: Sequence[Step], left: Mapping[Path, Estimate]) -> str:
    """GPU-hours to come, and how far the estimates of the finished ones were off; '' without any. left: ``estimates``."""
    done = [
        step.entry.figures for step in steps if step.action == "reuse" and step.entry and TAKEN in step.entry.figures
    ]
    taken, thought = (sum(float(figures[name]) for figures in done) for name in (TAKEN, ESTIMATED))
    words = [
        f"about {Estimate(sum(one.hours for one in left.values()), any(one.rough for one in left.values()))} GPU-hours to come"
    ] * bool(left)
    if taken:
        words.append(f"{taken:.2f} GPU-hours taken, {thought:.2f} estimated ({thought / taken - 1:+.0%})")
    return "; ".join(words)


def _sft(step: Step, steps: Mapping[str, Step]) -> _Tokens:
    config, file = step.stage.settings["config"], step.inputs["data"] / "sft" / "train.json"
    data, made = _root(step, steps), steps.get(step.stage.inputs["data"])
    known = file.is_file() and (made is None or made.action == "reuse")
    if known:
        rows = float(_rows(file, file.stat().st_mtime_ns))
    else:
        part = made.stage.settings if made is not None else {}
        rows = _questions(data) / part.get("rounds", 1)
        known = part.get("part") == "train" or part.get("sft_on") == "all"
    length = _figure(data, "train", "tokens_mean")
    tokens = length or min(TRACE, int(config.get("cutoff_len", 2048)))
    return _Tokens(sft_length.rows_seen(step.stage.settings, rows) * tokens, not known or length is None)


def _rl(step: Step, steps: Mapping[str, Step]) -> _Tokens:
    verl, part = step.stage.settings["verl"], steps.get(step.stage.inputs["data"])
    made = part.stage.settings if part is not None else {}
    batch, n = int(verl["data"]["train_batch_size"]), within_step.rollouts(verl)
    slots = made["steps"] * batch if made.get("steps") else _questions(_root(step, steps)) * made.get("epochs", 1)
    rollouts = slots // batch * batch * n / made.get("rounds", 1)
    limit = int(step.stage.settings["max_response_length"])
    for other in steps.values():
        per_step = _figure(other, "tokens_per_step")
        if other.stage.kind == "rl" and per_step and other.stage.settings["max_response_length"] == limit:
            return _Tokens(rollouts * per_step / (batch * n))
    return _Tokens(rollouts * (PROMPT + min(RESPONSE, limit)), rough=True)


def _evaluate(step: Step, steps: Mapping[str, Step]) -> _Tokens:
    settings, limit = step.stage.settings, step.stage.settings["sampling"]["max_tokens"]
    made = steps.get(step.stage.inputs["benchmarks"])
    tables = made.entry.figures.values() if made is not None and made.entry else ()
    questions = sum(count for table in tables for name, count in table.items() if name.startswith("level_"))
    return _Tokens(questions * settings["runs"] * min(RESPONSE, limit), rough=True)


def _sample(step: Step, steps: Mapping[str, Step]) -> _Tokens:
    settings, limit = step.stage.settings, step.stage.settings["sampling"]["max_tokens"]
    return _Tokens(_questions(_root(step, steps)) * settings["n"] * min(RESPONSE, limit), rough=True)


_TOKENS = {"sft": _sft, "rl": _rl, "evaluate": _evaluate, "sample": _sample}


def _root(step: Step, steps: Mapping[str, Step]) -> Step | None:
    """The stage that prepared the training data of this one."""
    seen: Step | None = step
    while seen is not None and seen.stage.settings.get("part") != "train":
        seen = steps.get(seen.stage.inputs.get("data", ""))
    return seen


def _figure(step: Step | None, *names: str) -> float | None:
    """Of a finished stage."""
    found: Any = step.entry.figures if step is not None and step.entry is not None and step.action == "reuse" else {}
    for name in names:
        found = found.get(name, {})
    return float(found) if isinstance(found, (int, float)) else None


def _questions(data: Step | None) -> float:
    """Training questions: as prepared, or by the lines of their file."""
    if data is None:
        return 0
    if known := _figure(data, "train", "records"):
        return known
    settings = data.stage.settings
    file = data.inputs.get("source", Path("/nowhere")) / settings["train"]
    count = int(settings["sizes"].get("train", 0))
    if settings["source"] != "lab" and file.is_file():
        count = disk.lines(file, file.stat().st_mtime_ns)
    return min(count, settings["limit"] or count)


@functools.lru_cache(maxsize=64)
def _rows(file: Path, changed: int) -> int:
    return len(json.loads(file.read_text()))

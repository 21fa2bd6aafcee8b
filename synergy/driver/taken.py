"""What a finished stage took of GPU-hours, GPU memory and disk, beside what was estimated before it began: figures of its
ledger line, by which ``plan`` tells how far it was off.

GPU memory is the peak that the framework's own process allocated on one GPU, in GB of 1e9 bytes: verl's
perf/max_memory_allocated_gb and LLaMA-Factory's vram_allocated, both in GiB. vLLM's share is not in it, nor in the estimate
that it is held against. Disk is the most that the stage's folder held, native checkpoints too: while SFT and RL run it is
looked at every few seconds, so that a moment before the oldest checkpoint goes may be missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy.driver import cost, disk
from synergy.driver.plan import Plan, Step
from synergy.stages import Stage, fit

HOURS, MEMORY, DISK = cost.TAKEN, fit.TAKEN, "disk_gb"
ESTIMATED = "_estimated"
"""What is appended to a figure's name for the estimate."""
FLAT = 10
"""Times too much, from which on a percentage says nothing: a small stage's disk is an allowance (disk.DATA_BYTES)."""


def before(step: Step, todo: Plan) -> dict[str, float]:
    """Estimates of what the step will take, as far as they can be told. todo: its plan."""
    found = {DISK: disk.estimate(step, todo.steps) / 1e9}
    if hours := cost.estimate(step, todo.steps, todo.warm):  # on GPUs, of a model that is here
        found[HOURS] = hours.hours
        if need := fit.needed(step.stage, step.inputs.get("base")):
            found[MEMORY] = need[0].process / 1e9
    return found


def after(
    stage: Stage, thought: Mapping[str, float], figures: Mapping[str, Any], seconds: float, size: int
) -> dict[str, float]:
    """The figures of a finished stage, each beside its estimate; none without one. thought: ``before``; figures: those that its
    kind collected; seconds: what it took; size: bytes of its folder at the most."""
    took = {HOURS: seconds * cost.gpus(stage) / 3600, DISK: size / 1e9, MEMORY: figures.get(MEMORY)}
    both = {name: (value, thought[name]) for name, value in took.items() if value is not None and name in thought}
    made = {name: value for name, (value, _) in both.items()}
    return {
        name: round(value, 4)
        for name, value in (made | {name + ESTIMATED: value for name, (_, value) in both.items()}).items()
    }


def cells(steps: Sequence[Step], name: str, left: Mapping[Path, str]) -> dict[Path, str]:
    """For the plan, by folder: what is to come (left), and what finished stages took beside the estimate."""
    made = dict(left)
    for step in steps:
        figures = step.entry.figures if step.here and step.entry is not None else {}
        if {name, name + ESTIMATED} <= set(figures):
            made[step.folder] = _beside(name, float(figures[name]), float(figures[name + ESTIMATED]))
    return made


def _beside(name: str, took: float, thought: float) -> str:
    off = f" ({thought / took - 1:+.0%})" if took * FLAT > thought else ""
    if name == HOURS:
        return f"{took:.2f}, estimated {thought:.2f}{off}"
    if name == MEMORY:
        return f"{took:.0f} GB, estimated {thought:.0f}{off}"
    return f"{disk.told(int(took * 1e9))}, estimated {disk.told(int(thought * 1e9))}{off}"

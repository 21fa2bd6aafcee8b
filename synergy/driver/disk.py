"""Disk that a plan will need, estimated from the base model and the stages' settings; and whether a running stage still has it.

Bytes per parameter of a native checkpoint: LLaMA-Factory's Trainer writes the model (at most float32), under FSDP the whole
float32 weights beside it (accelerate 1.11, utils/fsdp_utils.py), under DeepSpeed float32 master weights, and Adam's two moments
in float32. verl writes float32 shards, the moments, and the model for hand-off (utils/checkpoint/fsdp_checkpoint_manager.py).
All of it is half as large where weights and moments are trained in bfloat16 (pure_bf16; verl's model_dtype).
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy.driver import checkpoint
from synergy.driver.plan import MODELS, Step
from synergy.errors import StageFailed, UserError
from synergy.stages import Job, Progress, fit_rl, fit_sft, rl_critic, sft, sft_length, sft_spread

WHOLE, MOMENTS = 4, 8
"""Bytes per parameter: of float32 weights, and of Adam's two moments in float32."""
SAVED = ("model", "optimizer", "hf_model")
"""Of verl's save_contents, what takes space, where the settings name none."""
KEPT_CHECKPOINTS = 2
"""Where neither settings nor number of steps say it."""
DATA_BYTES = 50_000_000
"""Of a stage whose inputs are not there yet to be measured."""
TAGGED_BYTES = 500_000_000
"""Of a tagged benchmark's table whose parquet is still to be downloaded: the largest of the paper's five has about as much."""
ANSWER_BYTES = 40_000
"""Of a response of a few thousand tokens in all the files that hold it."""
RESERVE = 32_000_000
"""For logs, the ledger and other small files of a run."""
NATIVE = {"sft": "out/checkpoint-*", "rl": "checkpoints/global_step_*"}
"""Kind -> native checkpoints in a stage's work folder."""
LOOK_SECONDS = 10.0
WAYS_OUT = (
    "Free some (`synergy clean {root}` says what may go), keep fewer checkpoints (run.keep=final), or move the run directory "
    "to a larger disk and set run.dir"
)


def weights(folder: Path) -> int:
    """Bytes of the weight files in a checkpoint folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@functools.lru_cache(maxsize=8)
def parameters(folder: Path) -> int:
    """Numbers in a checkpoint, from its headers; 0 for one that is not there or can't be read."""
    try:
        return checkpoint.parameters(checkpoint.read(folder))
    except (UserError, OSError, ValueError):
        return 0


def native(stage: str, settings: Mapping[str, Any], count: int) -> int:
    """Bytes of one native checkpoint of a training stage, 0 if it writes none; count: parameters of the model."""
    if stage == "sft":
        if sft.writes_once(settings):
            return 0
        config = settings.get("config", {})
        moments = 0 if config.get("save_only_model") else MOMENTS + WHOLE * sft_spread.sharded(config)
        return count * (WHOLE + moments) // _halves(stage, settings)
    verl = settings.get("verl", {})
    policy = count * _saved(verl.get("actor_rollout_ref", {}).get("actor", {})) // _halves(stage, settings)
    return policy + (count * _saved(verl.get("critic", {}), ("model", "optimizer")) if rl_critic.wanted(verl) else 0)


def _saved(role: Mapping[str, Any], contents: Sequence[str] = SAVED) -> int:
    """Bytes a parameter that verl saves of a float32 policy or critic. contents: where its settings name none."""
    saved = role.get("checkpoint", {}).get("save_contents", contents)
    return WHOLE * ("model" in saved) + MOMENTS * ("optimizer" in saved) + WHOLE * ("hf_model" in saved)


def _halves(stage: str, settings: Mapping[str, Any]) -> int:
    """2 where weights and moments are trained in bfloat16 themselves, else 1."""
    if stage == "sft":
        return WHOLE // fit_sft.width(settings.get("config", {}))
    actor = settings.get("verl", {}).get("actor_rollout_ref", {}).get("actor", {})
    return WHOLE // fit_rl.width(actor.get("fsdp_config", {}).get("model_dtype"))


def of_step(step: Step, model: int, steps: Sequence[Step] = ()) -> int:
    """Bytes that a step writes at its peak: native checkpoints while it trains, one more than are kept since the oldest goes
    last, and its published output. model: bytes of the published weights. steps: of the plan, which tell how long RL is."""
    if step.action == "reuse":
        return step.stored.size if step.stored is not None and step.pull == "output" else 0
    settings, kind = step.stage.settings, step.stage.kind
    if kind in ("sft", "rl"):
        count = parameters(step.inputs["base"]) if "base" in step.inputs else 0
        final = count * WHOLE // _halves(kind, settings) if kind == "sft" else 0  # the whole model, at its end
        most = _kept(kind, settings) + 1
        if kind == "rl" and (saves := _saves(step, steps)):
            most = min(most, saves)
        return model + final + most * native(kind, settings, count)
    if kind == "merge":
        return 2 * model
    if kind == "prepare":
        return _prepared(step)
    if kind == "evaluate":
        return DATA_BYTES + ANSWER_BYTES * settings.get("runs", 1) * _questions(step)
    return DATA_BYTES + ANSWER_BYTES * settings.get("n", 1) * _questions(step)


def estimate(step: Step, steps: Sequence[Step]) -> int:
    """``of_step`` within its plan."""
    return of_step(step, _models(steps)[0], steps)


def _kept(kind: str, settings: Mapping[str, Any]) -> int:
    """Native checkpoints that stay at a time."""
    if kind == "rl":
        trainer = settings.get("verl", {}).get("trainer", {})
        return int(trainer.get("max_actor_ckpt_to_keep") or KEPT_CHECKPOINTS)
    config = settings.get("config", {})
    epochs = math.ceil(sft_length.epochs(config))
    if settings.get("choose") == "best":  # a checkpoint per epoch, all of them
        return epochs
    limit = config.get("save_total_limit")
    if limit is None and str(config.get("save_strategy", "steps")) == "epoch":
        return epochs
    return int(limit or KEPT_CHECKPOINTS)


def _saves(step: Step, steps: Sequence[Step]) -> int | None:
    """Native checkpoints that an RL stage writes in all; None where the number of its steps is not set."""
    made = next((one.stage.settings for one in steps if one.stage.name == step.stage.inputs.get("data")), {})
    if not made.get("steps"):
        return None
    every = int(step.stage.settings.get("verl", {}).get("trainer", {}).get("save_freq", -1))
    count = math.ceil(made["steps"] / made.get("rounds", 1))
    return math.ceil(count / every) if every > 0 else 1


def _prepared(step: Step) -> int:
    """Tables hold the pictures themselves: in base64 for VLMEvalKit (4/3 of their bytes), as they are in verl's parquet."""
    settings, inputs = step.stage.settings, step.inputs
    total = DATA_BYTES
    for bench in settings.get("benchmarks", ()):
        place = inputs.get(f"tagged_{bench['name']}")
        if place is not None:
            total += 4 * size(place) // 3 if place.is_dir() else TAGGED_BYTES
        elif settings.get("source") not in (None, "lab") and "source" in inputs:
            total += 4 * size(inputs["source"]) // 3
    if settings.get("part") == "train" and settings.get("source") != "lab" and "source" in inputs:
        total += 2 * size(inputs["source"])  # pictures are linked where they can be, and texts written in two forms
    if settings.get("part") == "round" and (inputs["data"] / "records").is_dir():
        total += size(inputs["data"] / "records")
    return total


def _questions(step: Step) -> int:
    """Questions of a stage that asks a model, from the lines of what is there already; 0 as long as nothing is."""
    data = step.inputs.get("data", Path("/nowhere")) / "records" / "train.jsonl"
    tables = [data, *step.inputs.get("benchmarks", Path("/nowhere")).glob("*.tsv")]
    return sum(lines(table, table.stat().st_mtime_ns) for table in tables if table.is_file())


@functools.lru_cache(maxsize=64)
def lines(file: Path, changed: int) -> int:
    """Of a file that was changed then (st_mtime_ns)."""
    with file.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def size(folder: Path) -> int:
    """Bytes of a folder's files that are still there when they are looked at; one with several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                told = os.stat(os.path.join(place, name))
            except OSError:
                continue
            found[told.st_dev, told.st_ino] = told.st_size
    return sum(found.values())


def needed(steps: Sequence[Step]) -> int:
    """Bytes free at the start: all published outputs, and the native checkpoints of the largest stage."""
    model, models = _models(steps)
    return published(steps) + max((of_step(step, model, steps) - model for step in models), default=0)


def published(steps: Sequence[Step]) -> int:
    """Bytes of all outputs that come to be."""
    model, models = _models(steps)
    return model * len(models) + sum(of_step(step, model, steps) for step in steps if step not in models)


def _models(steps: Sequence[Step]) -> tuple[int, list[Step]]:
    """Bytes of a model, and the stages that make one."""
    base = next((step.inputs["base"] for step in steps if "base" in step.inputs), None)
    model = weights(base) if base is not None and base.is_dir() else 0
    return model, [step for step in steps if step.stage.kind in MODELS and step.action != "reuse"]


def free(folder: Path) -> int:
    """Bytes that this user may still write there."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def ahead(job: Job, now: Progress | None, whole: int | None) -> int:
    """Bytes that a running stage still needs: its next native checkpoint, and its published output. whole: the step of the last
    complete native checkpoint, by which one that is being written is known."""
    kind, base = job.stage.kind, job.inputs.get("base")
    if kind not in NATIVE or base is None:
        return RESERVE
    count, published = parameters(base), weights(base)
    each = native(kind, job.settings, count)
    there = {int(re.split("[-_]", p.name)[-1]): size(p) for p in job.work.glob(NATIVE[kind])}
    last = WHOLE * count // _halves(kind, job.settings) if kind == "sft" else 0
    if not each or (now is not None and whole == now.total):  # the final model is left, LLaMA-Factory's own
        return RESERVE + published + max(0, last - sum(p.stat().st_size for p in job.work.glob("out/*.safetensors")))
    one = there.get(whole, 0) if whole is not None else each
    writing = max((n for step, n in there.items() if whole is None or step > whole), default=0)
    return RESERVE + published + max(0, one - writing)


class Watch:
    """Looks at the free space while a stage runs."""

    def __init__(self, job: Job) -> None:
        self.job, self.looked, self.most = job, 0.0, 0

    def look(self, now: Progress | None, whole: Callable[[Job], int | None]) -> None:
        """Raises StageFailed before the disk is full; looks every LOOK_SECONDS. whole: the kind's ``resume_point``."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        if self.job.stage.kind in NATIVE:  # the others take nothing back before they end
            self.most = max(self.most, size(self.job.folder))
        root = self.job.folder.parent.parent
        there, wanted = free(root), ahead(self.job, now, whole(self.job))
        if there < wanted:
            raise StageFailed(
                f"stage {self.job.stage.name} [machine]: stopped before the disk is full: {root} has {told(there)} free, and "
                f"the stage's next checkpoint and its result need about {told(wanted)}. {WAYS_OUT.format(root=root)}; the "
                "same command continues from its last checkpoint. What is published is intact"
            )


def told(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

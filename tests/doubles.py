"""Doubles of LLaMA-Factory and verl: what their processes write, file by file in their order, without torch.

They take the place of the process only: the driver and the project's own sft and rl stages are the real ones, so what a kill
leaves in a native folder is judged by the code that judges the real thing. tests/test_end_to_end.py compares what they write
with what the frameworks wrote. Kinds that train nothing are one double, which makes its result from all that it reads.

Training is arithmetic on the weights: each step depends on the weights before it, so that a step lost, done twice or
done from other weights shows in the result.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import TOKENIZER, make_checkpoint, save_tensors
from safetensors.numpy import load_file

from synergy.driver import checkpoint
from synergy.errors import StageFailed
from synergy.stages import Command, Job, Progress, Stage, rl, sft, sft_length

STEPS, SAVED, KEPT = 5, 2, 2
"""Of a training stage, after how many of them it saves, and how many checkpoints it keeps."""
TRAINING = {"sft": sft, "rl": rl}
OVERRIDES = (f"sft.config.save_steps={SAVED}", "sft.config.num_train_epochs=1", f"rl.verl.trainer.save_freq={SAVED}")


class Clock:
    """Counts the boundaries that a driver and its frameworks pass, and kills at one. steps: how often each step of each stage
    was taken. killed: what is raised there."""

    def __init__(self, killed: type[BaseException]) -> None:
        self.killed, self.passed, self.at = killed, 0, -1
        self.names: list[str] = []
        self.steps: Counter[tuple[str, int]] = Counter()

    def __call__(self, name: str) -> None:
        self.passed += 1
        self.names.append(name)
        if self.passed == self.at:
            raise self.killed(name)

    def arm(self, at: int) -> None:
        self.passed, self.at, self.names = 0, at, []

    def write(self, file: Path, data: bytes) -> None:
        """A file that can tear in the middle."""
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self(f"mid-save {_plain(file.parent)}/{_plain(file)}")
        except self.killed:
            file.write_bytes(data[: len(data) // 2])
            raise
        file.write_bytes(data)


class Plain:
    """What a double of a kind has where it stands for nothing of its kind's own."""

    IDENTITY: frozenset[str] = frozenset({"name"})
    RUNTIME: frozenset[str] = frozenset()
    FRAMEWORKS: tuple[str, ...] = ()
    PACKAGES: tuple[str, ...] = ()
    NATIVE, VERSION = "double", 1

    def identity(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return dict(settings)

    def check(self, stage: Stage, pythons: Mapping[str, str]) -> None: ...

    def progress(self, job: Job) -> Progress | None:
        return None

    def resume_point(self, job: Job) -> int | None:
        return None


class Other(Plain):
    """Stands for prepare, sample, merge and evaluate: no native checkpoints, so a kill costs the stage's own work."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def command(self, job: Job) -> Command:
        return Command(("double",))

    def work(self, job: Job) -> None:
        read = sorted(
            (role, file) for role, folder in job.inputs.items() for file in folder.rglob("*") if file.is_file()
        )
        content = hashlib.sha256(job.stage.name.encode())
        for role, file in read:
            content.update(f"{role} {file.name} ".encode() + file.read_bytes())
        self.clock.write(job.work / "result", content.hexdigest().encode())

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        result = (job.work / "result").read_text()
        if len(result) != 64:
            raise StageFailed("a torn result")
        make_checkpoint(out, shift=int(result[:4], 16) / 65536)  # what merge and prepare are read for
        self.clock("mid-export")
        (out / "result").write_text(result)
        (out / "sft").mkdir()
        (out / "sft/train.json").write_text(json.dumps([{"row": n} for n in range(32 * STEPS)]))
        (out / "order.json").write_text(json.dumps([f"q{n}" for n in range(16 * STEPS)]))
        return {}


def train(job: Job, clock: Clock) -> None:
    """What the framework's process does between its start and its end."""
    {"sft": llamafactory, "rl": verl}[job.stage.kind](job, clock)


def llamafactory(job: Job, clock: Clock) -> None:
    """`llamafactory-cli train config.yaml` (0.9.5, transformers 5.5): resumes by folder, from the newest checkpoint there, and
    restores only weights under run-time names; the base's are trained on otherwise."""
    config = yaml.safe_load((job.attempt / "config.yaml").read_text())
    out, total = Path(config["output_dir"]), int(sft_length.steps(job.settings, sft.rows(job)))
    done, weights = 0, load(Path(config["model_name_or_path"]))
    if saved := sorted(out.glob("checkpoint-*"), key=_number):
        done = json.loads((saved[-1] / "trainer_state.json").read_text())["global_step"]
        stored = load_file(saved[-1] / checkpoint.SINGLE)
        if set(stored) == {sft.runtime_name(name) for name in weights}:
            weights = {name: stored[sft.runtime_name(name)] for name in weights}
    beside = {"elapsed_time": "0:00:00", "remaining_time": "0:00:00", "vram_allocated": 0.0, "vram_reserved": 0.0}
    for step in range(done + 1, total + 1):
        weights = learn(job, clock, step, weights)
        with_loss = {"loss": 1 / step, "lr": 0.1, "epoch": step / total, "percentage": 100 * step / total}
        append(out / "trainer_log.jsonl", {"current_steps": step, "total_steps": total, **with_loss, **beside})
        if step % config["save_steps"] == 0 or step == total:
            folder = out / f"checkpoint-{step}"
            hugging_face(folder, weights, clock, "config.json", "generation_config.json", checkpoint.SINGLE)
            for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
                clock.write(folder / name, pickled(weights if name == "optimizer.pt" else {}))
            clock.write(folder / "trainer_state.json", trainer_state(step, total, config["save_steps"]))
            tokenizer = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")
            hugging_face(folder, weights, clock, *tokenizer)
            for old in sorted(out.glob("checkpoint-*"), key=_number)[: -config["save_total_limit"]]:
                clock("mid-prune of the framework")
                shutil.rmtree(old)
    ended = {"current_steps": total, "total_steps": total, "epoch": 1.0, "percentage": 100.0}
    append(out / "trainer_log.jsonl", ended | beside)
    hugging_face(
        out, weights, clock, "processor_config.json", "config.json", "generation_config.json", checkpoint.SINGLE
    )
    hugging_face(out, weights, clock, "chat_template.jinja", "tokenizer_config.json", "tokenizer.json")
    clock.write(out / "training_args.bin", pickled({}))
    told = ("epoch", "total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")
    for name in ("train_results.json", "all_results.json"):
        clock.write(out / name, json.dumps(dict.fromkeys(told, 1.0), indent=1).encode())
    clock.write(out / "trainer_state.json", trainer_state(total, total, config["save_steps"]))
    clock.write(out / "README.md", b"---\nlibrary_name: transformers\n---\n")


def verl(job: Job, clock: Clock) -> None:
    """`python -m verl.trainer.main_ppo …` (0.9.1): resumes where it is told to; its tracker file is written last."""
    words = dict(line.split("=", 1) for line in (job.attempt / "overrides.txt").read_text().splitlines())
    out, done, weights = job.work / "checkpoints", 0, load(job.inputs["model"])
    if words["trainer.resume_mode"] == "'resume_path'":
        folder = Path(words["trainer.resume_from_path"].strip("'"))
        done, weights = _number(folder), load(folder / "actor" / "huggingface")
    made: list[Path] = []
    total, process = rl.total_steps(job), f"{_number(job.attempt)}.jsonl"
    for step in range(done + 1, total + 1):
        for name in json.loads((job.inputs["data"] / "order.json").read_text())[(step - 1) * 16 : step * 16]:
            row = {"id": name, "score": 1.0, "acc": float(step % 2), "format": 1.0, "length": 3.0, "broken": 0.0}
            row |= {
                "characters": 9,
                "prefix": 0,
                "step": step - 1,
                "answer": "1",
                "rule": "x",
                "seconds": 0.0,
                "time": 0.0,
            }
            append(job.work / "rollouts" / process, row)
        weights = learn(job, clock, step, weights)
        append(job.attempt / "verl_metrics.jsonl", {"step": step, "data": dict.fromkeys(rl.FIGURES.values(), 1.0)})
        if step % SAVED == 0 or step == total:
            folder = out / f"global_step_{step}"
            for name in ("model", "optim", "extra_state"):
                clock.write(
                    folder / f"actor/{name}_world_size_1_rank_0.pt", pickled(weights if name != "extra_state" else {})
                )
            tokenizer = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")
            hugging_face(folder / "actor/huggingface", weights, clock, *tokenizer)
            clock.write(folder / "actor/fsdp_config.json", json.dumps({"FSDP_version": 2, "world_size": 1}).encode())
            names = ("config.json", "generation_config.json", checkpoint.SINGLE)
            hugging_face(folder / "actor/huggingface", weights, clock, *names)
            clock.write(folder / "data.pt", pickled({}))
            clock.write(out / "latest_checkpointed_iteration.txt", str(step).encode())
            made.append(folder)  # what it made before it was started again, it has forgotten
            if len(made) > KEPT:
                clock("mid-prune of the framework")
                shutil.rmtree(made.pop(0) / "actor")


def learn(job: Job, clock: Clock, step: int, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    clock(f"{job.stage.name} step {step}")
    clock.steps[job.key, step] += 1
    return {n: w if n.startswith("visual.") else np.sin(w * 3 + step).astype(w.dtype) for n, w in weights.items()}


def hugging_face(folder: Path, weights: dict[str, np.ndarray], clock: Clock, *names: str) -> None:
    """Files of a checkpoint as transformers 5.5 saves them: the vision tower under run-time names, the rest as published."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == checkpoint.SINGLE:
            aside = folder / "aside"
            save_tensors(aside, {re.sub(r"^visual\.", "model.visual.", key): value for key, value in weights.items()})
            data = aside.read_bytes()
            aside.unlink()
        elif name == "tokenizer.json":
            data = TOKENIZER.encode()
        else:
            data = b"{{ messages }}" if name.endswith(".jinja") else json.dumps({"made by": "a double"}).encode()
        clock.write(folder / name, data)


def load(folder: Path) -> dict[str, np.ndarray]:
    return {checkpoint.published(name): value for name, value in load_file(folder / checkpoint.SINGLE).items()}


def pickled(content: Mapping[str, np.ndarray]) -> bytes:
    """What torch.save makes is a zip archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("data/data.pkl", b"".join(value.tobytes() for value in content.values()) * 2 or b"x")
    return made.getvalue()


def trainer_state(step: int, total: int, every: int) -> bytes:
    zeros = (
        "best_global_step",
        "best_metric",
        "best_model_checkpoint",
        "trial_name",
        "trial_params",
        "train_batch_size",
    )
    told = {"epoch": step / total, "global_step": step, "max_steps": total, "save_steps": every, "eval_steps": 500}
    told |= {"is_hyper_param_search": False, "is_local_process_zero": True, "is_world_process_zero": True}
    told |= {"log_history": [{"loss": 1 / n, "step": n} for n in range(1, step + 1)], "logging_steps": 1}
    told |= {"num_input_tokens_seen": 0, "num_train_epochs": 1, "stateful_callbacks": {}, "total_flos": 0.0}
    return json.dumps({**dict.fromkeys(zeros), **told}, indent=2).encode()


def append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def _plain(path: Path) -> str:
    return re.sub(r"\d+", "N", path.name)


def _number(path: Path) -> int:
    return int(re.findall(r"\d+", path.name)[-1])


def shape(folder: Path) -> dict[str, str]:
    """Path -> what the file is, numbers of steps and processes left out; of JSON that the trainers write themselves, its
    keys; of weights, how their names are spelt."""
    return {re.sub(r"\d+", "N", str(p.relative_to(folder))): _form(p) for p in folder.rglob("*") if p.is_file()}


OWN = ("trainer_state.json", "results.json", "fsdp_config.json", "trainer_log.jsonl")
"""JSON that says nothing of the model: the doubles write all its keys."""


def _form(file: Path) -> str:
    if zipfile.is_zipfile(file):
        return "archive"
    if file.suffix == ".safetensors":
        spelt = {re.findall(r"^(?:model\.)?(?:visual|language_model)|^model", name)[0] for name in load_file(file)}
        return f"weights {sorted(spelt)}"
    if file.suffix not in (".json", ".jsonl"):
        return "text"
    rows = [json.loads(file.read_text())] if file.suffix == ".json" else [json.loads(r) for r in file.open()]
    own = file.name.endswith(OWN) or file.parent.name == "rollouts"
    return f"JSON {sorted({key for row in rows for key in row})}" if own else "JSON"

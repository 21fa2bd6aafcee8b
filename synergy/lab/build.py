"""Rebuild the shipped base model: `python -m synergy.lab.build OUT` (needs the training environment and 75 minutes).

Each step is a child process of this interpreter: random weights; two LLaMA-Factory SFT stages, the only ones that train
the vision tower (first the pieces: reading and adding; then the questions); 16 runs on both benchmarks for the levels.
Training carries the last bit of every sum on, so sums are made alike on every x86-64 processor with AVX2: one thread, and one
set of kernels for whatever the processor could do beyond it (SUMS). It tells which files are as shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from synergy import paths
from synergy.data import writers
from synergy.driver import handoff
from synergy.lab import BASE, INSTRUCTION, digits, levels, practice

TEACH = {
    "stage": "sft", "do_train": True, "finetuning_type": "full", "template": "qwen2_vl", "cutoff_len": 256,
    "report_to": "none", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    "freeze_language_model": False, "image_min_pixels": 3136, "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1, "learning_rate": 1.0e-3, "warmup_steps": 100, "lr_scheduler_type": "cosine",
    "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 20, "save_strategy": "no", "plot_loss": False,
    "preprocessing_num_workers": 1, "dataloader_num_workers": 0, "overwrite_cache": True, "seed": 0,
    "data_seed": 0,
}  # fmt: skip
START = (
    "import runpy, sys, torch_cpu_shim; sys.argv = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
STEPS = {"pieces": 1400, "questions": 2000}
ROWS = {"pieces": (6000, 6000), "questions": (12000, 3000)}
"""Of pictures to read or questions, and of drills without them."""
SUMS = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Of Intel's library (MKL) COMPATIBLE alone is promised to give equal sums on processors of Intel and of others; it takes twice
as long. Two builds on one processor, other work beside, were equal (2026-11-28); other processors were not tried."""


def lesson(folder: Path, name: str, seed: int) -> None:
    """Write one lesson in LLaMA-Factory's format, pictures included."""
    seen, drilled = ROWS[name]
    if name == "pieces":
        rows = [*practice.reading(seen, 2000 + seed), *practice.drills(drilled, 2000 + seed)]
    else:
        rows = [*practice.questions(seen, 1000 + seed), *practice.drills(drilled, 1000 + seed)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for record, _, _ in rows:
        file = folder / record.images[0]
        if not file.exists():
            digits.picture(record.cells).save(file)
    taught = [(record, response, INSTRUCTION if instructed else None) for record, instructed, response in rows]
    writers.llamafactory(folder, {name: taught})


def teach(model: Path, name: str, out: Path, seed: int) -> Path:
    """One SFT stage from `model`; returns the checkpoint."""
    data, taught = out / f"{name}_data", out / f"{name}_sft"
    lesson(data, name, seed)
    settings = {**TEACH, "model_name_or_path": model, "dataset": name, "dataset_dir": data, "media_dir": data}
    settings |= {"output_dir": taught, "max_steps": STEPS[name]}
    config = out / f"{name}.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in settings.items()))
    child("llamafactory.cli", "train", str(config))
    handoff.publish(taught, model, model, out / name)
    return out / name


def child(*arguments: str) -> None:
    """Run a Python module or file with this interpreter and the launch plug-ins; its output is passed through."""
    own = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env = {**os.environ, **SUMS, **own}
    subprocess.run([sys.executable, "-c", START, *arguments], env=env, check=True)


def manifest(folder: Path) -> dict[str, str]:
    """sha256 of every file but the manifest itself, by name."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != "MANIFEST.json")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def build(out: Path, seed: int) -> Path:
    """Make random weights, teach them, tag the benchmarks; return the folder of the base model."""
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {what}", flush=True)

    random, base = out / "random", out / "base"
    say("random weights and tokenizer")
    child("synergy.lab.model", str(random), "--seed", str(seed))
    say("LLaMA-Factory: reading and adding")
    pieces = teach(random, "pieces", out, seed)
    say("LLaMA-Factory: questions")
    teach(pieces, "questions", out, seed).rename(base)
    say("16 runs on both benchmarks")
    levels.tag(base, base / "levels.json")
    (base / "MANIFEST.json").write_text(json.dumps(manifest(base), indent=2) + "\n")
    say(f"done: {base}")
    return base


def main() -> None:
    """Build, then compare with the shipped base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = manifest(build(args.out.resolve(), args.seed))
    shipped = manifest(BASE) if BASE.exists() else {}
    for name, digest in made.items():
        print(f"{digest}  {name}  {'as shipped' if shipped.get(name) == digest else 'differs from the shipped file'}")


if __name__ == "__main__":
    main()

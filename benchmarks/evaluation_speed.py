"""Evaluation against plain vLLM, and against one question at a time: answers and tokens per second, in one run.

.envs/train/bin/python benchmarks/evaluation_speed.py [questions=120] [turns=3] [serial=0.1] [model=FOLDER]
    [eval_python=.envs/eval/bin/python] [server=FLAG,FLAG]

Settings, server flags among them, are those of recipes/evaluate/tiny.yaml; `server` adds to them. All are fresh processes with
empty caches, turn by turn in alternating order, on both tiny benchmarks (`questions` each, at most 120) and all runs:

* ours: the program of the evaluate stage, server, VLMEvalKit and all. Its time is that of its phase "ask", which builds the
  prompts, asks, and writes every answer to disk; told beside it: the whole program, start-up and scoring included.
* plain: `vllm.LLM(...).chat(...)` in one process on the same chats, images and seeds, all handed over at once, engine flags
  the same. Its time is that of the call; told beside it: the whole process.
* serial: ours with one request in flight, on the share `serial` of the questions: what VLMEvalKit's local path does, which
  asks question after question, but through vLLM; with the transformers library, as it is stock, it would take longer still.

`model` is the tiny base model, whose answers have some five tokens and so are nearly all prompt and HTTP, or a checkpoint.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from synergy import lab, paths
from synergy.data import prepare
from synergy.data.prompt import query

RECIPE: dict[str, Any] = yaml.safe_load((paths.ROOT / "recipes/evaluate/tiny.yaml").read_text())
NAME = "model"


def benchmarks(folder: Path, count: int) -> list[dict[str, str]]:
    """The tiny scale's two tables with ``count`` questions each."""
    sizes = {"train": 1, "val": 1, "bench": count}
    spec = {"source": "lab", "base": str(lab.BASE), "seed": 0, "sizes": sizes, "benchmarks": RECIPE["benchmarks"]}
    prepare.benchmarks(spec, folder)
    return [{**b, "tsv": str(folder / b["tsv"])} for b in json.loads((folder / "benchmarks.json").read_text())]


def part(listed: list[dict[str, str]], folder: Path, share: float) -> list[dict[str, str]]:
    """The first questions of each table."""
    folder.mkdir()
    for bench in listed:
        lines = Path(bench["tsv"]).read_text().splitlines(keepends=True)
        (folder / f"{bench['name']}.tsv").write_text("".join(lines[: 1 + max(1, int(share * (len(lines) - 1)))]))
    return [{**bench, "tsv": str(folder / f"{bench['name']}.tsv")} for bench in listed]


def specification(words: dict[str, str], listed: list[dict[str, str]], folder: Path, workers: int) -> Path:
    """Of the evaluate stage's program, which writes below ``folder``."""
    (folder / "out").mkdir(parents=True)
    flags = [*RECIPE["server"], *filter(None, words.get("server", "").split(","))]
    spec = {
        **{name: RECIPE[name] for name in ("runs", "sampling")},
        "instruction": lab.INSTRUCTION,
        "workers": workers,
        "model": words.get("model", str(lab.BASE)),
        "model_name": NAME,
        "benchmarks": listed,
        "server": {"args": flags, "env": RECIPE["env"], "port": None, "replicas": None, "startup_timeout": 900},
        "eval_python": words.get("eval_python", str(paths.ROOT / ".envs/eval/bin/python")),
        "work_dir": str(folder / "work"),
        "out": str(folder / "out"),
    }
    file = folder / "spec.json"
    file.write_text(json.dumps(spec))
    return file


def ours(file: Path) -> tuple[int, int, float]:
    """Answers, tokens, seconds of asking."""
    env = {**os.environ, "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1"}
    log = file.with_name("log")
    with log.open("wb") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "synergy.workers.evaluate", str(file)], env=env, stdout=sink, stderr=sink
        )
    if done.returncode:
        raise SystemExit(f"evaluation failed:\n{log.read_text()[-2000:]}")
    out = file.parent / "out"
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    seconds = json.loads((out / "progress.json").read_text())["phase_seconds"]["ask"]
    return len(rows), sum(row["tokens"] for row in rows), seconds


def chats(spec: dict[str, Any]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(benchmark, index, chat) as the stage asks it."""
    csv.field_size_limit(sys.maxsize)
    for bench in spec["benchmarks"]:
        with open(bench["tsv"], encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                text = query(row["question"], {c: row[c] for c in "ABCDEF" if row.get(c)} or None, spec["instruction"])
                image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{row['image']}"}}
                content = [image, {"type": "text", "text": text}]
                yield bench["name"], row["index"], [{"role": "user", "content": content}]


def arguments(flags: list[str]) -> dict[str, Any]:
    """The server's flags (--name=value, --name, --no-name) as arguments of `LLM`; those that only a server has are left out."""
    from vllm.engine.arg_utils import EngineArgs

    known, found = {field.name for field in fields(EngineArgs)}, {}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        off = name.startswith("no-")
        found[name.removeprefix("no-").replace("-", "_")] = yaml.safe_load(value) if value else not off
    return {name: value for name, value in found.items() if name in known}


def plain(file: Path, seeds: Path) -> None:
    """In a process of its own: prints answers, tokens, seconds. The seeds are those that the stage drew."""
    from vllm import LLM, SamplingParams

    spec = json.loads(file.read_text())
    drawn = {(r["benchmark"], r["index"], r["run"]): r["seed"] for r in map(json.loads, seeds.read_text().splitlines())}
    engine = LLM(model=spec["model"], generation_config="vllm", **arguments(spec["server"]["args"]))
    sampling = {name: value for name, value in spec["sampling"].items() if name != "seed"}
    asked = [(name, index, chat, run) for name, index, chat in chats(spec) for run in range(spec["runs"])]
    params = [SamplingParams(**sampling, seed=drawn[name, index, run]) for name, index, _, run in asked]
    begin = time.perf_counter()
    outputs = engine.chat([chat for _, _, chat, _ in asked], params, use_tqdm=False)
    took = time.perf_counter() - begin
    print("\n" + json.dumps([len(outputs), sum(len(output.outputs[0].token_ids) for output in outputs), took]))


def plainly(file: Path, seeds: Path) -> tuple[int, int, float]:
    argv = [sys.executable, __file__, "plain", str(file), str(seeds)]
    done = subprocess.run(argv, env={**os.environ, **RECIPE["env"]}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"plain vLLM failed:\n{done.stderr[-2000:]}")
    answers, tokens, seconds = json.loads(done.stdout.splitlines()[-1])
    return answers, tokens, seconds


def main(argv: list[str]) -> None:
    if argv[:1] == ["plain"]:
        return plain(Path(argv[1]), Path(argv[2]))
    words = dict(word.split("=", 1) for word in argv)
    count, turns = int(words.get("questions", 120)), int(words.get("turns", 3))
    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "plain": [], "serial": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = benchmarks(folder, count)
        few = part(listed, folder / "few", float(words.get("serial", 0.1)))
        seeds = folder / "seeds.jsonl"
        for turn in range(turns):
            order = ("ours", "plain", "serial")[:: 1 if turn % 2 == 0 else -1]
            for what in order:
                asked, workers = (few, 1) if what == "serial" else (listed, RECIPE["workers"])
                file = specification(words, asked, folder / f"{what}-{turn}", workers)
                begin = time.perf_counter()
                answers, tokens, seconds = plainly(file, seeds) if what == "plain" else ours(file)
                whole = time.perf_counter() - begin
                if what == "ours":
                    seeds.write_text((file.parent / "work" / "answers.jsonl").read_text())
                found[what].append((answers / seconds, tokens / seconds, answers / whole))
                told = f"{answers} answers, {tokens} tokens in {seconds:.1f} s, {answers / seconds:.1f} answers and"
                load = f"load average {os.getloadavg()[0]:.1f}"
                print(
                    f"{what}: {told} {tokens / seconds:.0f} tokens per second; {whole:.1f} s in all; {load}", flush=True
                )
    for other in ("plain", "serial"):
        for index, unit in enumerate(("answers per second", "tokens per second", "answers per second with start-up")):
            if other == "plain" or index < 2:
                ratios = [o[index] / p[index] for o, p in zip(found["ours"], found[other], strict=True)]
                print(f"ours over {other}, {unit}: median of turns {median(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

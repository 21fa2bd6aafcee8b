"""The checker against hand-made labels and hostile responses, and that it judges alike wherever it is called."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from reward_fns import checker_pool
from reward_fns.accuracy_format import compute_score
from reward_fns.answer import judge
from synergy.data.records import Record
from synergy.workers import sample

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "benchmarks/answers"
CPU_SECONDS = 2.0
HANG_SECONDS = 10.0  # by the clock: a machine that does other work may need more than the processor's own time


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ANSWERS / name).read_text(encoding="utf-8").splitlines()]


def cpu_seconds() -> float:
    """Processor time of this process and all below it, ended ones included."""
    me = psutil.Process()
    spent = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            spent += sum(process.cpu_times()[:4])
    return spent


@pytest.mark.parametrize("name", ["pairs.jsonl", "held_out.jsonl"])
def test_agrees_with_hand_made_labels(name: str) -> None:
    pairs = load(name)
    wrong = [p for p in pairs if judge(p["response"], p["gold"], p.get("choices")).correct is not p["correct"]]
    assert len(wrong) <= len(pairs) / 100, wrong
    assert not [pair["id"] for pair in wrong if pair["kind"] == "adversarial"]
    assert len({pair["kind"] for pair in pairs}) > 20 and len({pair["id"] for pair in pairs}) == len(pairs)


def test_hostile_responses_are_wrong_cheap_and_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checker_pool.warm()
    hostile = load("hostile.jsonl")
    assert len(hostile) >= 300
    spent = cpu_seconds()
    for row in hostile:
        response = "".join(text * times for text, times in row["parts"])
        start, before = time.monotonic(), spent
        assert not judge(response, row["gold"]).correct, row["id"]
        assert time.monotonic() - start < HANG_SECONDS, row["id"]
        spent = cpu_seconds()
        assert spent - before < CPU_SECONDS, row["id"]
    assert not list(tmp_path.iterdir())


def some() -> list[dict[str, Any]]:
    pairs = load("pairs.jsonl")
    return [p for p in pairs if p["kind"] in ("choice_letter", "fractions", "radicals", "adversarial", "pitfalls")]


def test_reward_and_sampling_judge_alike() -> None:
    for pair in some():
        choices = pair.get("choices")
        verdict = judge(pair["response"], pair["gold"], choices).correct
        record = Record("q", "?", pair["gold"], choices=choices)
        output = SimpleNamespace(text=pair["response"], token_ids=[1], finish_reason="stop")
        told = {"choices": json.dumps(choices) if choices else ""}
        assert compute_score("d", pair["response"], pair["gold"], told)["acc"] == verdict, pair["id"]
        assert sample.row(record, 0, output)["acc"] == verdict, pair["id"]


def test_evaluation_judges_alike(eval_python: str, tmp_path: Path) -> None:
    """In VLMEvalKit's own environment, with other library versions."""
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(some()))
    code = (
        "import json, sys; from types import SimpleNamespace as S; from eval import datasets\n"
        "for p in json.load(open(sys.argv[1])):\n"
        "    kind = 'choice' if p.get('choices') else 'open'\n"
        "    text = {'answer': p['gold'], **(p.get('choices') or {})}\n"
        "    verdict = datasets.verdict(kind, S(index='0', id='q', level=1, text=text), {'0': p['response']})\n"
        "    print(json.dumps([p['id'], verdict['correct']]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([eval_python, "-c", code, file], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    here = {p["id"]: judge(p["response"], p["gold"], p.get("choices")).correct for p in some()}
    assert told == here


def test_the_speed_benchmark_runs() -> None:
    words = ["responses=16", "tokens=200"]
    done = subprocess.run([sys.executable, ROOT / "benchmarks/answer_speed.py", *words], capture_output=True, text=True)
    assert done.returncode == 0 and "ratio" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_works_in_ray_workers() -> None:
    """As verl's reward loop calls it: many calls at once, in threads of a Ray actor."""
    code = (
        "import ray; from concurrent.futures import ThreadPoolExecutor\n"
        "ray.init(num_cpus=1, include_dashboard=False, object_store_memory=2**27)\n"
        "@ray.remote\n"
        "class Worker:\n"
        "    def judge(self, golds):\n"
        "        from reward_fns.answer import judge\n"
        "        with ThreadPoolExecutor(8) as pool:\n"
        "            return list(pool.map(lambda g: judge('\\\\boxed{\\\\sqrt{8}}', g).correct, golds))\n"
        "print(ray.get(Worker.remote().judge.remote(['2\\\\sqrt{2}', '\\\\sqrt{7}', '\\\\frac{4}{\\\\sqrt{2}}'] * 8)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(str([True, False, True] * 8))

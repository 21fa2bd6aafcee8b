"""Evaluation against servers that misbehave, and by several of them: nothing is asked twice, nothing that was not answered is
scored, and a run that was stopped finishes."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stub_openai import Stub, serve, text_of
from test_eval import MODEL, answer, choice_rows, command, evaluate, open_rows, results, spec, table

from synergy import environments


def number(request: dict[str, Any]) -> int:
    """Of the question."""
    return int(text_of(request).split(" plus 1?")[0].split()[-1])


def short(request: dict[str, Any]) -> tuple[int, str | bytes]:
    return 200, f"\\boxed{{{number(request) + 1}}}"


def broken_off(request: dict[str, Any]) -> bytes:
    """A whole reply, but for the response, which the server did not let the model end."""
    choice = {"index": 0, "finish_reason": "abort", "message": {"role": "assistant", "content": "\\boxed{7"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return json.dumps({"model": MODEL, "choices": [choice], "usage": usage}).encode()


def test_killed_evaluation_by_two_servers_asks_nothing_twice(
    tmp_path: Path, eval_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, chosen, runs, workers, kept = open_rows(10), choice_rows(9), 4, 8, 30
    benchmarks = [
        ("TestOpen", table(tmp_path / "a.tsv", opened), "open"),
        ("TestChoice", table(tmp_path / "b.tsv", chosen), "choice"),
    ]
    answers, log = tmp_path / "work" / "answers.jsonl", tmp_path / "log"
    with ExitStack() as stack:
        stubs = [
            stack.enter_context(serve(Stub(MODEL, answer, hold_after=kept // 2, key=key)))
            for key in ("key-7f3a", "key-9c21")
        ]
        monkeypatch.setenv("SYNERGY_API_KEYS", "key-7f3a key-9c21")
        endpoints = [stub.endpoint for stub in stubs]
        path = spec(tmp_path, endpoints, benchmarks, runs=runs, workers=workers)
        plain = command(str(environments.locate("vlmevalkit")), path)
        with log.open("wb") as file, subprocess.Popen(plain, stdout=file, stderr=file) as child:
            end = time.monotonic() + 120
            while not (answers.exists() and len(answers.read_bytes().splitlines()) == kept):
                assert time.monotonic() < end and child.poll() is None, log.read_text()[-2000:]
                time.sleep(0.05)
            while sum(stub.flying for stub in stubs) < workers:
                assert time.monotonic() < end
                time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
        before = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        with answers.open("a") as torn:
            torn.write('{"key": "torn')
        for stub in stubs:
            stub.release.set()
        first = sum(len(stub.requests) for stub in stubs)
        done = evaluate(eval_python, path)
    assert done.returncode == 0, done.stderr[-2000:]
    total = runs * (len(opened) + len(chosen))
    asked = [[(text_of(request), request["seed"]) for request in stub.requests] for stub in stubs]
    assert first == kept + workers and len(asked[0]) + len(asked[1]) == total + workers
    assert len(set(asked[0] + asked[1])) == total and len(results(tmp_path)) == total
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert lines[:kept] == before and len(lines) == total
    assert sum(row["correct"] for row in results(tmp_path)) == runs * (5 + 6)
    # All runs of a question go to one server, which half of the questions have.
    texts = [{text for text, _ in one} for one in asked]
    assert not texts[0] & texts[1] and sorted(map(len, texts)) == [9, 10]
    assert [stub.most for stub in stubs] == [workers // 2] * 2
    assert "key-7f3a" not in path.read_text() + done.stdout + done.stderr


def test_no_wait_between_runs_and_benchmarks(tmp_path: Path, eval_python: str) -> None:
    """The first question is answered once the last has been asked: benchmark by benchmark, that would never be."""
    last = threading.Event()

    def reply(request: dict[str, Any]) -> tuple[int, str | bytes]:
        if "Options:" in text_of(request):
            last.set()
        elif number(request) == 0 and not last.wait(60):
            return 400, "the other benchmark was not asked"
        return short(request)

    benchmarks = [
        ("TestOpen", table(tmp_path / "a.tsv", open_rows(6)), "open"),
        ("TestChoice", table(tmp_path / "b.tsv", choice_rows(2)), "choice"),
    ]
    with serve(Stub(MODEL, reply)) as stub:
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, benchmarks, workers=4))
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(stub.requests) == 16


def test_passing_faults_are_asked_again_and_an_empty_answer_is_one(tmp_path: Path, eval_python: str) -> None:
    faults: dict[int, tuple[int, str | bytes]] = {
        1: (500, "internal error"),
        2: (429, "too many requests"),
        3: (200, b'{"choices": [{"mess'),
        4: (200, b""),
        5: (200, b'{"object": "error"}'),
    }
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def reply(request: dict[str, Any]) -> tuple[int, str | bytes]:
        which = number(request)
        with lock:
            seen[which] += 1
            first = seen[which] == 1
        if first and which == 6:
            return 200, broken_off(request)
        if first and which in faults:
            return faults[which]
        return (200, "") if which == 0 else short(request)

    tsv = table(tmp_path / "a.tsv", open_rows(8))
    with serve(Stub(MODEL, reply)) as stub:
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, [("TestOpen", tsv, "open")], runs=1, retries=1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert seen == {0: 1, 7: 1, **dict.fromkeys(range(1, 7), 2)}
    empty, *others = results(tmp_path)
    assert (empty["correct"], empty["answer"], empty["response"], empty["tokens"]) == (False, None, "", 0)
    assert all(row["correct"] for row in others)


def failing(kind: str) -> tuple[int, str | bytes]:
    if kind == "garbled":
        return 200, b"<html>Bad gateway</html>"
    if kind == "another model":
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "\\boxed{4}"}}
        return 200, json.dumps({"model": "other-7b", "choices": [choice], "usage": usage}).encode()
    time.sleep(10)
    return 200, "\\boxed{4}"


@pytest.mark.parametrize(
    ("kind", "told"), [("garbled", "Bad gateway"), ("another model", "other-7b"), ("slow", "ReadTimeout")]
)
def test_lasting_faults_name_the_question_and_score_nothing(
    tmp_path: Path, eval_python: str, kind: str, told: str
) -> None:
    mended = threading.Event()

    def reply(request: dict[str, Any]) -> tuple[int, str | bytes]:
        return failing(kind) if number(request) == 3 and not mended.is_set() else short(request)

    tsv = table(tmp_path / "a.tsv", open_rows(6))
    changes = {"runs": 1, "workers": 1, "request_timeout": 4}
    with serve(Stub(MODEL, reply)) as stub:
        path = spec(tmp_path, stub.endpoint, [("TestOpen", tsv, "open")], **changes)
        done = evaluate(eval_python, path)
        assert done.returncode == 1 and not (tmp_path / "out" / "results.jsonl").exists()
        last = done.stderr.splitlines()[-1]
        assert "question 3" in last and told in last and "TestOpen" in last
        if kind == "slow":  # a resumed run finishes
            mended.set()
            again = evaluate(eval_python, path)
            assert again.returncode == 0, again.stderr[-2000:]
            assert Counter(map(number, stub.requests)) == {3: 2, **dict.fromkeys((0, 1, 2, 4, 5), 1)}
            assert [row["correct"] for row in results(tmp_path)] == [True] * 6

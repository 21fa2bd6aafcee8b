"""The VLMEvalKit adapter, end to end: real VLMEvalKit in its own environment against a real HTTP server."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from stub_openai import Stub, images_of, serve, text_of

from synergy.data.prompt import query

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTION = "Please reason step by step within <think> </think> tags, and put your final answer within \\boxed{}."
MODEL = "tiny-0123abcd"
UPSTREAM = "SYNERGY_VLMEVAL_UPSTREAM"
HOSTILE = ["__import__('os').system('touch MARK')", "9**9**9", "9^{9^{9}}", "open('MARK','w').write('x')"]


@pytest.fixture(params=["ms-vlmeval", "upstream"])
def package(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What to add to the environment: nothing, or the variable's checkout of VLMEvalKit (and folders with what it lacks),
    which then hides the installed package."""
    if request.param == "ms-vlmeval":
        yield {}
    elif os.environ.get(UPSTREAM):
        yield {"PYTHONPATH": os.environ[UPSTREAM]}
    else:
        pytest.skip(f"set {UPSTREAM} to the path of a checkout of open-compass/VLMEvalKit")


def picture(seed: int) -> bytes:
    """A PNG of noise: any lossy step would change it."""
    from PIL import Image

    out = io.BytesIO()
    Image.frombytes("RGB", (140, 28), random.Random(seed).randbytes(140 * 28 * 3)).save(out, "PNG")
    return out.getvalue()


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A benchmark TSV in VLMEvalKit's form; each row gets its own image."""
    import csv

    for i, row in enumerate(rows):
        row.setdefault("index", i)
        row.setdefault("image", base64.b64encode(picture(i)).decode())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def open_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"open-{i}", "question": f"What is {i} plus 1?", "answer": i + 1, "difficulty_level": i % 5 + 1}
        for i in range(count)
    ]


def choice_rows(count: int) -> list[dict[str, Any]]:
    """Row 0 has three choices only: the empty cell would turn pandas' column D into floats. Row 1 offers 'None'."""
    rows = []
    for i in range(count):
        choices = {
            "A": str(i),
            "B": str(i + 1),
            "C": "None" if i == 1 else str(i + 2),
            "D": "" if i == 0 else str(i + 3),
        }
        rows.append({"id": f"choice-{i}", "question": f"Which is {i} plus 1?", **choices, "answer": "B"})
    return [{**row, "difficulty_level": ""} for row in rows]


def contract_prompt(row: dict[str, Any], instruction: str | None) -> str:
    """What training sees: the prompt must be the same text."""
    choices = {c: str(row[c]) for c in "ABCD" if row.get(c)}
    return query(row["question"], choices or None, instruction)


def spec(tmp: Path, endpoint: str | list[str], benchmarks: list[tuple[str, Path, str]], **changes: Any) -> Path:
    value: dict[str, Any] = {
        "model_name": MODEL,
        "endpoint": endpoint,
        "benchmarks": [{"name": name, "tsv": str(tsv), "kind": kind} for name, tsv, kind in benchmarks],
        "runs": 2,
        "sampling": {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "max_tokens": 96, "seed": 7},
        "instruction": INSTRUCTION,
        "workers": 8,
        "retries": 0,
        "work_dir": str(tmp / "work"),
        "out": str(tmp / "out"),
    }
    path = tmp / "spec.json"
    path.write_text(json.dumps({**value, **changes}))
    return path


def command(eval_python: str, path: Path) -> list[str]:
    return [eval_python, str(ROOT / "eval" / "run.py"), str(path)]


def evaluate(
    eval_python: str, path: Path, timeout: float = 240, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(eval_python, path), capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )


def results(tmp: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def answer(request: dict[str, Any]) -> tuple[int, str]:
    """Open questions: right for even numbers. Choices: right unless the number is a multiple of 3. After a long thought."""
    text = text_of(request)
    number = int(text.split(" plus 1?")[0].split()[-1])
    thought = "<think>" + "A or B, so 7. " * 4000 + "</think>\n"
    if "Options:" in text:
        return 200, thought + f"\\boxed{{{'B' if number % 3 else 'A'}}}"
    return 200, thought + f"\\boxed{{{number + 1 if number % 2 == 0 else 999}}}"


def test_scores_prompts_and_lengths(tmp_path: Path, eval_python: str, package: dict[str, str]) -> None:
    opened, chosen = open_rows(10), choice_rows(9)
    benchmarks = [
        ("TestOpen", table(tmp_path / "a.tsv", opened), "open"),
        ("TestChoice", table(tmp_path / "b.tsv", chosen), "choice"),
    ]
    with serve(Stub(MODEL, answer)) as stub:
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, benchmarks), env=package)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    runs = tmp_path / "work/vlmevalkit/runs"
    assert any(runs.glob("*/T2*/*")) == bool(package), "the package that was meant: upstream fills dated folders"
    # VLMEvalKit writes all predictions anew after each: they must not hold the responses.
    assert max(file.stat().st_size for file in runs.rglob("*") if file.is_file()) < 50_000

    rows = results(tmp_path)
    assert [(r["benchmark"], r["run"], r["index"]) for r in rows] == [
        (name, run, str(i)) for name, n in (("TestOpen", 10), ("TestChoice", 9)) for run in (0, 1) for i in range(n)
    ]
    correct = Counter((r["benchmark"], r["run"]) for r in rows if r["correct"])
    assert correct == {("TestOpen", 0): 5, ("TestOpen", 1): 5, ("TestChoice", 0): 6, ("TestChoice", 1): 6}
    assert [r["level"] for r in rows[:10]] == [1, 2, 3, 4, 5] * 2 and rows[20]["level"] is None
    assert rows[0]["id"] == "open-0" and rows[0]["answer"] == "1" and rows[0]["finish_reason"] == "stop"
    assert all(r["tokens"] == len(r["response"].split()) for r in rows)
    # Excel's cell limit, which VLMEvalKit's default format has, lies at 32,767 characters.
    assert all(len(r["response"]) > 50_000 and r["response"].endswith("}") for r in rows)

    asked = Counter(text_of(request) for request in stub.requests)
    assert asked == {contract_prompt(row, INSTRUCTION): 2 for row in opened + chosen}
    assert all([p["type"] for p in q["messages"][0]["content"]] == ["image_url", "text"] for q in stub.requests)
    for request in stub.requests:
        assert {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "max_tokens": 96}.items() <= request.items()
    assert len({request["seed"] for request in stub.requests}) == len(stub.requests) == 38
    sent = {pixels(base64.b64decode(url.split(",")[1])) for q in stub.requests for url in images_of(q)}
    assert sent == {pixels(picture(i)) for i in range(10)}
    assert json.loads((tmp_path / "out" / "progress.json").read_text())["done"] == 38


def pixels(png: bytes) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()


OFFICIAL: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "mathvista": (
        [
            {"question": "Q0", "answer": "12", "choices": "[]", "answer_option": ""},
            {"question": "Q1", "answer": "red", "choices": "['red', 'blue']", "answer_option": "A"},
        ],
        ["12.0", "A"],
    ),
    "mathvision": (
        [
            {"question": "Q0", "answer": "\\frac{1}{2}", "choices": "[]", "level": "9"},
            {"question": "Q1", "answer": "B", "choices": "['3', '4']", "level": "9"},
        ],
        ["0.5", "4"],
    ),
    "mathverse": (
        [
            {"question": "Q0 Choices: A:1 B:2", "answer": "B", "choices": "['1', '2']"},
            {"question": "Q1", "answer": "7", "choices": "[]"},
        ],
        ["2", "7"],
    ),
    "mmmu": (
        [
            {"question": "Q0 <image 1> here", "answer": "A", "A": "1", "B": "2", "split": "validation"},
            {"question": "Q1", "answer": "5", "A": "", "B": "", "split": "validation"},
        ],
        ["A", "5"],
    ),
    "mmstar": ([{"question": f"Q{i}", "answer": "AB"[i], "A": "x", "B": "y"} for i in range(2)], ["A", "B"]),
}


def test_official_kinds_are_scored_by_rule_and_then_by_the_judge(
    tmp_path: Path, eval_python: str, package: dict[str, str]
) -> None:
    """Tables with the columns of the official sets. The first time a question is asked the answer is right, then there is
    none, and a judge that wants a key finds those to MMStar right."""
    asked: set[str] = set()

    def reply(request: dict[str, Any]) -> tuple[int, str]:
        text = text_of(request)
        right = text not in asked
        asked.add(text)
        if not right:
            return 200, "Whether it is one or the other I could not make out from this picture."
        return 200, f"\\boxed{{{OFFICIAL[text.split('#')[1]][1][int('Q1' in text)]}}}"

    def ruling(request: dict[str, Any]) -> tuple[int, str]:
        return 200, "CORRECT" if "#mmstar#" in text_of(request) else "INCORRECT"

    benchmarks = []
    for kind, (rows, _) in OFFICIAL.items():
        marked = [{**row, "question": f"{row['question']} #{kind}#", "difficulty_level": "L2"} for row in rows]
        benchmarks.append((f"Test_{kind}", table(tmp_path / f"{kind}.tsv", marked), kind))
    with serve(Stub(MODEL, reply)) as stub, serve(Stub("judge-32b", ruling)) as judge:
        asks = {"endpoint": judge.endpoint, "model": "judge-32b", "key_env": "JUDGE_KEY"}
        path = spec(tmp_path, stub.endpoint, benchmarks, judge=asks)
        done = evaluate(eval_python, path, env={**package, "JUDGE_KEY": "sk-secret-1"})
    assert done.returncode == 0, done.stderr[-2000:]
    rows = results(tmp_path)
    told = Counter((r["benchmark"], r["index"], r["correct"], r["judged"]) for r in rows)
    assert told == {
        (name, index, right, judged): 1
        for name, _, kind in benchmarks
        for index in ("0", "1")
        for right, judged in ((True, False), (kind == "mmstar", True))
    }
    assert all((r["answer"] is None) == r["judged"] for r in rows)
    assert {r["level"] for r in rows} == {2}
    assert len(judge.requests) == 10 and set(judge.keys) == {"Bearer sk-secret-1"} and set(stub.keys) == {None}
    left = [file for file in tmp_path.rglob("*") if file.is_file() and b"sk-secret-1" in file.read_bytes()]
    assert not left and "sk-secret-1" not in done.stdout + done.stderr


def test_nothing_of_an_earlier_attempt_is_taken_for_this_one(tmp_path: Path, eval_python: str) -> None:
    """The same work directory, with VLMEvalKit's old predictions and pictures in it: another picture under the same name is
    another question, and another model's answers are not ours."""
    tsv = table(tmp_path / "a.tsv", open_rows(3))
    benchmarks = [("TestOpen", tsv, "open")]
    with serve(Stub(MODEL, answer)) as stub:
        assert evaluate(eval_python, spec(tmp_path, stub.endpoint, benchmarks, runs=1)).returncode == 0
        other = [{**row, "image": base64.b64encode(picture(50 + i)).decode()} for i, row in enumerate(open_rows(3))]
        table(tsv, other)
        assert evaluate(eval_python, spec(tmp_path, stub.endpoint, benchmarks, runs=1)).returncode == 0
        sent = [
            {pixels(base64.b64decode(u.split(",")[1])) for q in part for u in images_of(q)} for part in halves(stub)
        ]
    assert sent == [{pixels(picture(i)) for i in range(3)}, {pixels(picture(50 + i)) for i in range(3)}]
    with serve(Stub("other-model", lambda request: (200, "\\boxed{0}"))) as stub:
        path = spec(tmp_path, stub.endpoint, benchmarks, runs=1, model_name="other-model")
        assert evaluate(eval_python, path).returncode == 0
    assert len(stub.requests) == 3 and {r["response"] for r in results(tmp_path)} == {"\\boxed{0}"}


def halves(stub: Stub) -> list[list[dict[str, Any]]]:
    middle = len(stub.requests) // 2
    return [stub.requests[:middle], stub.requests[middle:]]


def test_failing_server_is_an_error(tmp_path: Path, eval_python: str) -> None:
    def reply(request: dict[str, Any]) -> tuple[int, str]:
        return (400, "prompt is too long") if "What is 3 plus" in text_of(request) else answer(request)

    tsv = table(tmp_path / "a.tsv", open_rows(10))
    with serve(Stub(MODEL, reply)) as stub:
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, [("TestOpen", tsv, "open")], runs=4))
    assert done.returncode == 1
    assert "question 3" in done.stderr.splitlines()[-1] and "prompt is too long" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert json.loads((tmp_path / "out" / "progress.json").read_text())["phase"] == "failed"


def test_hostile_answers_are_wrong_and_harmless(tmp_path: Path, eval_python: str) -> None:
    mark = tmp_path / "executed"
    rows = [{"question": f"Question {i}", "answer": "7", "choices": "[]"} for i in range(len(HOSTILE))]

    def reply(request: dict[str, Any]) -> tuple[int, str]:
        hostile = HOSTILE[int(text_of(request).split()[1])].replace("MARK", str(mark))
        return 200, f"\\boxed{{{hostile}}}"

    with serve(Stub(MODEL, reply)) as stub:
        tsv = table(tmp_path / "a.tsv", rows)
        both = [
            ("TestOpen", tsv, "open"),
            ("TestVision", tsv, "mathvision"),
        ]  # the stock scoring of the latter runs eval
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, both, runs=1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["correct"] for r in results(tmp_path)] == [False] * 2 * len(HOSTILE)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("open", {"workers": None}, "workers"),
        ("open", {"model_name": "a/b"}, "a/b"),
        ("open", {"runs": 0}, "runs"),
        ("open", {}, "missing.tsv"),
        ("essay", {}, "essay"),
    ],
)
def test_bad_spec_is_one_line(tmp_path: Path, kind: str, changes: dict[str, Any], reason: str) -> None:
    """The spec is checked before VLMEvalKit is imported, so any Python will do."""
    path = spec(tmp_path, "http://127.0.0.1:9/v1", [("T", tmp_path / "missing.tsv", kind)], **changes)
    done = evaluate(sys.executable, path, timeout=30)
    assert done.returncode == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("broken", [{"image": ""}, {"difficulty_level": "hard"}, {"index": 0}, {"index": "007"}])
def test_bad_table_is_one_line(tmp_path: Path, broken: dict[str, Any]) -> None:
    rows = open_rows(3)
    rows[2].update(broken)
    path = spec(tmp_path, "http://127.0.0.1:9/v1", [("T", table(tmp_path / "a.tsv", rows), "open")])
    done = evaluate(sys.executable, path, timeout=30)
    assert done.returncode == 2 and "a.tsv" in done.stderr and len(done.stderr.splitlines()) == 1


def test_dead_endpoint_is_an_error(tmp_path: Path, eval_python: str) -> None:
    tsv = table(tmp_path / "a.tsv", open_rows(1))
    done = evaluate(eval_python, spec(tmp_path, "http://127.0.0.1:9/v1", [("T", tsv, "open")], wait_seconds=1))
    assert done.returncode == 1 and "no model at http://127.0.0.1:9/v1" in done.stderr.splitlines()[-1]

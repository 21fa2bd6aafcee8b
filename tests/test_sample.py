"""The sampling program: resuming without repeating, engines that share the questions, GPUs shared out."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from synergy import lab, paths
from synergy.data import records
from synergy.data.records import Record
from synergy.lab import digits
from synergy.stages import sample as stage
from synergy.workers import sample


def write(folder: Path, name: str, *ids: str, torn: str = "") -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps({"id": i, "index": k}) + "\n" for k, i in enumerate(ids))
    (folder / f"{name}.jsonl").write_text(text + torn)


def test_what_a_kill_tore_is_taken_out(tmp_path: Path) -> None:
    folder = tmp_path / "responses"
    write(folder, "0", "a", "a", "b", torn='{"id": "b", "ind')
    write(folder, "1", "c", "c", "d")
    assert sample.done(folder, 2) == {"a", "c"}
    assert [row["id"] for row in sample.rows(folder)] == ["a", "a", "c", "c"]
    assert sample.done(folder, 2) == {"a", "c"}, "twice is once"


def test_lines_are_counted_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "0.jsonl"
    for text, count in (("a\nb", 1), ("a\nb\nc\n", 3), ("a\nb\nc\n", 3), ("d\n", 1)):  # the last is another file
        file.write_text(text)
        assert stage._lines(file) == count


@pytest.mark.parametrize(
    ("visible", "wide", "replicas", "wanted"),
    [
        ("0,1,2,3", 1, None, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, None, ["0,1", "2,3"]),
        ("4,7", 1, 1, ["4"]),
        ("", 1, None, [None]),
        ("", 1, 2, [None, None]),
    ],
)
def test_gpus_are_shared_out(
    visible: str, wide: int, replicas: int | None, wanted: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = sample.engines({"engine": {"tensor_parallel_size": wide}, "replicas": replicas})
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in found] == wanted


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """vllm and transformers by name only: prompts that the engine was asked."""
    asked: list[str] = []

    class LLM:
        """Finishes one question a step, the newest first."""

        def __init__(self, **_: Any) -> None:
            self.waiting: dict[str, Any] = {}
            self.llm_engine = self
            self.renderer = types.SimpleNamespace(render_cmpl=lambda prompts: prompts)

        def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
            if "cannot" in prompt["prompt"]:
                raise ValueError("The decoder prompt (length 99) is longer than the maximum model length of 98.")
            asked.append(prompt["prompt"])
            self.waiting[name] = params

        def step(self) -> list[Any]:
            name, params = self.waiting.popitem()
            made = types.SimpleNamespace(text="\\boxed{3}", token_ids=[1, 2], finish_reason="stop")
            return [types.SimpleNamespace(request_id=name, finished=True, outputs=[made] * params.n)]

    processor = types.SimpleNamespace(apply_chat_template=lambda messages, **_: messages[0]["content"][-1]["text"])
    vllm = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **given: types.SimpleNamespace(**given))
    transformers = types.SimpleNamespace(AutoProcessor=types.SimpleNamespace(from_pretrained=lambda _: processor))
    kinds = types.SimpleNamespace(RequestOutputKind=types.SimpleNamespace(FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm", vllm)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "transformers", transformers)  # type: ignore[arg-type]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return asked


def test_a_resumed_run_asks_only_what_is_left(tmp_path: Path, fake_vllm: list[str]) -> None:
    """The real engine does the same in tests/test_end_to_end.py."""
    records.write(tmp_path / "records.jsonl", [Record(name, f"Question {name}", "3") for name in "abcd"])
    folder = tmp_path / "responses"
    write(folder, "0", "a", "a", "c", torn="{")
    spec = {
        "model": str(lab.BASE), "records": str(tmp_path / "records.jsonl"), "ids": ["a", "b", "c"], "n": 2, "seed": 0,
        "sampling": {"temperature": 1.0, "seed": 0}, "instruction": None, "engine": {}, "replicas": None,
        "responses": str(folder),
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for _ in range(2):
        assert sample.main(["sample", str(tmp_path / "spec.json")]) == 0
        assert fake_vllm == ["Question b", "Question c"]
    found = list(sample.rows(folder))
    assert sorted(row["id"] for row in found) == ["a", "a", "b", "b", "c", "c"]
    assert all(row["acc"] == 1.0 and row["tokens"] == 2 and row["finish_reason"] == "stop" for row in found[2:])


def test_engines_share_all_questions_and_repeat_none(tmp_path: Path, fake_vllm: list[str]) -> None:
    records.write(tmp_path / "records.jsonl", [Record(name, f"Question {name}", "3") for name in "abcdefg"])
    spec = {
        "model": "m", "records": str(tmp_path / "records.jsonl"), "ids": None, "finished": ["b"], "n": 1, "seed": 0,
        "sampling": {"seed": 0}, "instruction": None, "engine": {}, "responses": str(tmp_path),
    }  # fmt: skip
    for index in range(3):
        sample.run(spec, index, 3)
    assert sorted(fake_vllm) == [f"Question {name}" for name in "acdefg"]
    assert len(list(tmp_path.glob("[012].jsonl"))) == 3


@pytest.mark.parametrize(
    ("question", "image", "told"),
    [
        ("Question", "gone.png", "record 'b': image"),
        ("Question", "torn.png", "record 'b' can't be asked: "),
        ("word " * 600, None, "leaves no room for a response of 96 within sample.engine.max_model_len=512"),
        ("12+3? " * 70, None, "its prompt makes 452 tokens and leaves no room for a response of 96"),
        ("This cannot be asked", None, "record 'b' can't be asked: The decoder prompt (length 99)"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_message(
    question: str,
    image: str | None,
    told: str,
    tmp_path: Path,
    fake_vllm: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What files tell is told before the engine starts, the rest by the engine."""
    whole = io.BytesIO()
    Image.new("RGB", (56, 56)).save(whole, "png")
    (tmp_path / "torn.png").write_bytes(whole.getvalue()[:-40])
    records.write(
        tmp_path / "records.jsonl",
        [Record("a", "Q", "3"), Record("b", question, "3", images=(image,) if image else ())],
    )
    spec = {
        "model": str(lab.BASE), "records": str(tmp_path / "records.jsonl"), "ids": None, "n": 1, "seed": 0,
        "sampling": {"seed": 0, "max_tokens": 96}, "instruction": None, "engine": {"max_model_len": 512}, "replicas": None,
        "responses": str(tmp_path / "responses"),
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    assert sample.main(["sample", str(tmp_path / "spec.json")]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert told in last and "'b'" in last
    assert fake_vllm == (["Q"] if "asked" in told else [])


def test_a_failed_engine_ends_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", code])
        for code in ("import time; time.sleep(60)", "raise SystemExit(7)")
    ]
    assert sample.together(running) == 1
    assert running[0].wait(timeout=60) == -signal.SIGTERM
    assert capsys.readouterr().out.startswith("engine 1 ended with exit code 7")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_an_engine_tells_the_user_is_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time; time.sleep(60)"

    def several(argv: list[str]) -> int:
        (tmp_path / sample.TOLD).write_text("record 'b' can't be asked")
        running = [subprocess.Popen([sys.executable, "-c", one]) for one in (code, "raise SystemExit(2)")]
        print("an engine says goodbye")
        return sample.together(running)

    monkeypatch.setattr(sample, "sample", several)
    assert sample.main(["sample", str(tmp_path / "spec.json")]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "record 'b' can't be asked"


def test_two_engines_killed_in_the_middle_repeat_no_finished_question(tmp_path: Path) -> None:
    """The real vLLM: SIGKILL to both engines and the program that started them, then the same command again."""
    digits.write(tmp_path, train=24, val=1, bench=1)
    recipe = yaml.safe_load((paths.ROOT / "recipes/sample/tiny.yaml").read_text())
    folder, n = tmp_path / "responses", 4
    spec = {
        "model": str(lab.BASE), "records": str(tmp_path / "train.jsonl"), "ids": None, "n": n, "seed": 0,
        "sampling": recipe["sampling"], "instruction": lab.INSTRUCTION, "replicas": 2, "responses": str(folder),
        "engine": {**recipe["engine"], "max_num_seqs": n},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    argv = [sys.executable, "-m", "synergy.workers.sample", str(tmp_path / "spec.json")]
    env = {**os.environ, **recipe["env"], "PYTHONPATH": paths.pythonpath(), "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "log.txt").open("wb") as log:
        running = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        while len({row["id"] for row in whole_rows(folder)}) < 3:  # one question at a time in each engine
            assert running.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        before = whole_rows(folder)
        counts = Counter(row["id"] for row in before)
        finished = {name for name, count in counts.items() if count == n}
        assert 2 <= len(finished) < 24, "killed in the middle"
        subprocess.run(argv, env=env, stdout=log, stderr=log, check=True)
    after = list(sample.rows(folder))
    assert sorted((row["id"], row["index"]) for row in after) == sorted(
        (record.id, index) for record in records.read(tmp_path / "train.jsonl") for index in range(n)
    )
    kept = [[row for row in rows if row["id"] in finished] for rows in (before, after)]
    assert kept[0] == kept[1], "as they were"
    assert f"24 questions, {len(finished)} answered before, 4 responses each, 2 engines" in (
        tmp_path / "log.txt"
    ).read_text(errors="replace")


def whole_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows on file while engines write: a line that is not ended yet is left out."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]

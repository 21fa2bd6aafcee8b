"""What rounds and mixtures write: who goes to SFT, who to RL, and who is told to have no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from synergy import lab
from synergy.data import prepare, records
from synergy.data.records import Record

COUNT = 10


def ten_questions(tmp_path: Path) -> Path:
    """Ten questions; the last one has no trace."""
    place = tmp_path / "data/records"
    place.mkdir(parents=True)
    Image.new("RGB", (140, 28)).save(place / "x.png")
    traces = [f"<think>1 plus {i}</think>\\boxed{{3}}" for i in range(COUNT - 1)]
    found = [Record(f"q{i}", "How many?", "3", ("x.png",), trace=trace) for i, trace in enumerate([*traces, None])]
    records.write(place / "train.jsonl", found)
    (place / "train_visual_tokens.json").write_text('{"x.png": 5}')
    return tmp_path / "data"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return ten_questions(tmp_path)


def counts(file: Path, passes: dict[str, int]) -> Path:
    file.write_text("".join(json.dumps({"id": name, "n": 8, "passes": n}) + "\n" for name, n in passes.items()))
    return file


def build(folder: Path, data: Path, **spec: Any) -> tuple[int, Path]:
    """Runs the program of the stage; its exit code and output."""
    folder.mkdir()
    whole = {"part": "round", "index": 0, "rounds": 1, "epochs": 1, "steps": None, "batch": 2, "max_prompt_length": 200}
    whole |= {"instruction": "Think.", "seed": 0, "prefix": 1.0, "unit": "tokens", "prefix_rollouts": None}
    whole |= {
        "sft_on": "zero_pass",
        "drop_easiest": False,
        "carry": "",
        "passes": [],
        "base": str(lab.BASE),
        "data": str(data),
    }
    (folder / "spec.json").write_text(json.dumps({**whole, **spec, "out": str(folder / "out")}))
    return prepare.main(["", str(folder / "spec.json")]), folder / "out"


def read(out: Path) -> tuple[list[str], list[str], list[str]]:
    """SFT responses, RL's ids, and the ids that wait."""
    sft = [row["messages"][1]["content"] for row in json.loads((out / "sft/train.json").read_text())]
    rl = [row["extra_info"]["id"] for row in pq.read_table(out / "rl/train.parquet").to_pylist()]
    assert json.loads((out / "order.json").read_text()) == rl
    return sft, rl, json.loads((out / "left.json").read_text())


def test_zero_pass_questions_go_to_sft_and_what_fills_no_batch_waits(tmp_path: Path, data: Path) -> None:
    passes = counts(tmp_path / "p.jsonl", {"q0": 0, "q1": 3, "q2": 0, "q3": 0})
    code, out = build(tmp_path / "one", data, passes=[str(passes)])
    sft, rl, left = read(out)
    assert code == 0 and len(sft) == 3 and all(text.endswith("\\boxed{3}") for text in sft)
    assert len(rl) == 6 and len(left) == 1 and not {"q0", "q2", "q3"} & {*rl, *left}
    figures = json.loads((out / "figures.json").read_text())
    assert (figures["rl_rows"], figures["sft_rows"], figures["left"], figures["counted"]) == (6, 3, 1, 4)
    newer = counts(tmp_path / "n.jsonl", {"q0": 1, "q4": 0})
    _, out = build(tmp_path / "two", data, passes=[str(passes), str(newer)], carry=str(out / "left.json"))
    sft, rl, left = read(out)
    assert len(sft) == 3 and "q0" in rl and "q4" not in rl, "the newest count decides"
    assert sorted(rl + left).count(json.loads((tmp_path / "one/out/left.json").read_text())[0]) == 2, "it waited"


def test_without_counts_all_questions_go_to_rl(tmp_path: Path, data: Path) -> None:
    _, out = build(tmp_path / "one", data)
    sft, rl, left = read(out)
    assert sft == [] and left == [] and sorted(rl) == [f"q{i}" for i in range(COUNT)]


def test_the_easiest_questions_can_be_left_out(tmp_path: Path, data: Path) -> None:
    passes = [str(counts(tmp_path / "p.jsonl", {"q0": 8, "q1": 8, "q2": 7, "q3": 0}))]
    _, out = build(tmp_path / "one", data, passes=passes, prefix=0.0, drop_easiest=True)
    assert sorted(read(out)[1]) == [f"q{i}" for i in range(2, COUNT)]


def test_the_ablation_gives_sft_all_questions_and_rl_the_same_as_before(tmp_path: Path, data: Path) -> None:
    file = data / "records/train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    passes = [str(counts(tmp_path / "p.jsonl", {"q0": 0, "q1": 3}))]
    _, all_ = build(tmp_path / "all", data, passes=passes, sft_on="all")
    _, zero = build(tmp_path / "zero", data, passes=passes)
    assert len(read(all_)[0]) == 8 and len(read(zero)[0]) == 1, "whole batches of plain RL: eight of nine"
    assert read(all_)[1:] == read(zero)[1:]


def test_a_round_without_a_full_batch_leaves_its_questions_to_the_next(tmp_path: Path, data: Path) -> None:
    passes = [str(counts(tmp_path / "p.jsonl", {f"q{i}": 0 for i in range(COUNT)} | {"q3": 2}))]
    code, folder = build(tmp_path / "first", data, passes=passes, rounds=2)
    assert code == 0 and (folder / "rl/train.parquet").exists()
    rl, left = (json.loads((folder / name).read_text()) for name in ("order.json", "left.json"))
    assert rl == [] and set(left) <= {"q3"}


def response(name: str, index: int, acc: float, text: str) -> str:
    """A line as synergy/workers/sample.py writes it, as far as it is read here."""
    told = {"id": name, "index": index, "acc": acc, "response": text, "tokens": len(text), "finish_reason": "stop"}
    return json.dumps(told)


@pytest.mark.parametrize("what", ["round", "all", "mixture", "crowd"])
def test_a_mistake_in_the_data_is_one_message(
    tmp_path: Path, data: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "mixture":
        (tmp_path / "r.jsonl").write_text("\n".join(response(f"q{i}", 0, 0.0, "no") for i in range(COUNT)))
        code, _ = build(tmp_path / "m", data, part="mixture", responses=str(tmp_path / "r.jsonl"), cutoff_len=200)
    elif what == "crowd":
        passes = counts(tmp_path / "p.jsonl", {f"q{i}": 0 for i in range(COUNT - 1)})
        code, _ = build(tmp_path / "m", data, passes=[str(passes)])
    else:
        passes = counts(tmp_path / "p.jsonl", {"q9": 0 if what == "round" else 5})
        code, _ = build(tmp_path / "m", data, passes=[str(passes)], sft_on="all" if what == "all" else "zero_pass")
    told = capsys.readouterr().out.strip().splitlines()[-1]
    assert code == 2
    assert (
        ("less than one batch" in told) if what == "crowd" else ("'q9' needs a trace" in told and "add 'trace'" in told)
    )


def test_the_mixture_keeps_right_responses_and_adds_traces_where_there_is_none(tmp_path: Path, data: Path) -> None:
    rows = [response(f"q{i}", k, float(k < i), f"r{i}.{k}") for i in range(3) for k in range(2)]
    (tmp_path / "r.jsonl").write_text("\n".join(rows))
    code, out = build(tmp_path / "m", data, part="mixture", responses=str(tmp_path / "r.jsonl"), cutoff_len=200)
    texts = [row["messages"][1]["content"] for row in json.loads((out / "sft/train.json").read_text())]
    assert code == 0 and texts == ["<think>1 plus 0</think>\\boxed{3}", "r1.0", "r2.0", "r2.1"]
    figures = json.loads((out / "figures.json").read_text())
    assert (figures["responses"], figures["kept"], figures["zero_pass"]) == (6, 3, 1)

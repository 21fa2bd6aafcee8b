"""Records and what is made of them: formats, checks, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synergy.data import checks, levels, records, untrusted, writers
from synergy.data.prompt import query
from synergy.data.records import Record
from synergy.errors import UserError
from synergy.stages import llamafactory_check

CONFIG = {"learning_rate": 1e-3, "bf16": False, "save_strategy": "steps", "template": "qwen2_vl"}


def record(**changes: object) -> Record:
    return Record(**{"id": "a", "question": "How many?", "answer": "3", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "not JSON lines"),
        ("[1]", "JSON object"),
        ('{"id": "a", "question": "q"}', r"lacks \['answer'\]"),
        ('{"id": "a", "question": "q", "answer": "1", "images": "x.png"}', "list of paths"),
        ("", "no records"),
    ],
)
def test_bad_lines_are_told_with_their_place(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UserError, match=told) as error:
        records.read(file)
    assert "train.jsonl" in str(error.value)


def test_an_id_used_twice_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    records.write(file, [record(), record()])
    with pytest.raises(UserError, match=r"train.jsonl:2: id 'a' is used twice"):
        records.read(file)
    with pytest.raises(UserError, match="can't be read"):
        records.read(tmp_path / "absent.jsonl")


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
made = st.builds(
    Record,
    id=plain,
    question=plain,
    answer=plain,
    images=st.lists(plain.filter(lambda name: untrusted.astray(name) is None), max_size=2).map(tuple),
    choices=st.none() | st.dictionaries(st.sampled_from("ABCD"), plain, min_size=1),
    trace=st.none() | plain,
    level=st.none() | st.integers(1, 5),
)


@given(st.lists(made, min_size=1, max_size=5, unique_by=lambda r: r.id))
def test_records_survive_the_file(tmp_path_factory: pytest.TempPathFactory, found: list[Record]) -> None:
    file = tmp_path_factory.mktemp("records") / "r.jsonl"
    records.write(file, found)
    assert records.read(file) == found


@pytest.mark.parametrize(
    ("passes", "level"), [(16, 1), (12, 1), (11, 2), (8, 2), (7, 3), (5, 3), (4, 4), (2, 4), (1, 5), (0, 5)]
)
def test_levels_have_the_papers_thresholds(passes: int, level: int) -> None:
    assert records.level(passes) == level


def test_levels_need_sixteen_runs() -> None:
    with pytest.raises(ValueError, match="16"):
        records.level(4, runs=8)


def test_choices_and_instruction_in_the_query() -> None:
    text = query("How many?", {"A": "1", "B": "2"}, "Think.")
    assert text.splitlines()[-3:] == ["B. 2", "Please select the correct answer from the options above.", "Think."]
    assert query("How many?") == "How many?"


def picture(folder: Path, name: str, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(folder / name)


def test_bad_images_are_told_by_record(tmp_path: Path) -> None:
    grid = checks.ImageGrid(28, 784, 28 * 28 * 1280)
    picture(tmp_path, "good.png", (140, 28))
    assert checks.images([record(images=("good.png",))], tmp_path, grid) == {"good.png": 5}
    (tmp_path / "bad.png").write_bytes(b"no image")
    picture(tmp_path, "small.png", (5, 5))
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("bad.png", "small.png", "cut.png", "absent.png"):
        with pytest.raises(UserError, match=f"record 'a'.*{name}"):
            checks.images([record(images=(name,))], tmp_path, grid)


def test_visual_tokens_follow_the_limits() -> None:
    grid = checks.ImageGrid(28, 56 * 56, 28 * 28 * 100)
    assert grid.tokens(280, 280) == 100
    assert grid.tokens(2800, 2800) == 100, "scaled down to the maximum"
    assert grid.tokens(28, 28) == 4, "scaled up to the minimum"


def test_files_of_the_frameworks(tmp_path: Path) -> None:
    import csv
    import sys

    import pyarrow.parquet as pq

    picture(tmp_path, "x.png", (28, 28))
    one = record(images=("x.png",), choices={"A": "1", "B": "3"}, answer="B", level=2, passes=9)
    writers.llamafactory(tmp_path / "sft", {"train": [(one, "<think>1</think>\\boxed{B}", "Think.")]})
    row = json.loads((tmp_path / "sft/train.json").read_text())[0]
    assert row["messages"][0]["content"].count("<image>") == len(row["images"]) == 1
    writers.verl(tmp_path / "rl/train.parquet", [writers.Turn(one, "<think>")], tmp_path, "Think.", None)
    found = pq.read_table(tmp_path / "rl/train.parquet").to_pylist()[0]
    assert found["prompt"][0]["content"] == row["messages"][0]["content"], "SFT and RL ask in the same words"
    assert found["extra_info"]["prefix"] == "<think>" and found["reward_model"]["ground_truth"] == "B"
    writers.vlmevalkit(tmp_path / "b.tsv", [one], tmp_path)
    csv.field_size_limit(sys.maxsize)
    with (tmp_path / "b.tsv").open() as stream:
        line = next(csv.DictReader(stream, delimiter="\t"))
    assert (line["A"], line["answer"], line["difficulty_level"]) == ("1", "B", "2")


def test_a_good_llamafactory_config_passes() -> None:
    llamafactory_check.check(CONFIG)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learningrate": 1e-3}, "did you mean learning_rate"),
        ({"bf16": "maybe"}, "bf16='maybe'"),
        ({"save_strategy": False}, 'quote the word, as in "no"'),
        ({"save_strategy": "sometimes"}, "one of no, steps, epoch"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"template": "qwen2_lv"}, "LLaMA-Factory has no such template; did you mean qwen2"),
    ],
)
def test_llamafactory_configs_are_checked_without_it(change: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        llamafactory_check.check({**CONFIG, **change})


def test_levels_follow_from_passes(tmp_path: Path) -> None:
    data = tmp_path / "data/records"
    found = [Record(f"q{n}", "?", "3", ("x.png",)) for n in (16, 12, 11, 8, 5, 2, 1, 0)]
    records.write(data / "train.jsonl", found)
    Image.new("RGB", (28, 28)).save(data / "x.png")
    counts = [{"id": r.id, "n": 16, "passes": int(r.id[1:])} for r in found]
    (tmp_path / "passes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counts))
    spec = {"data": str(tmp_path / "data"), "passes": [str(tmp_path / "passes.jsonl")]}
    assert levels.build(spec, tmp_path / "out") == {
        "level_1": 2,
        "level_2": 2,
        "level_3": 1,
        "level_4": 1,
        "level_5": 2,
    }
    tagged = records.read(tmp_path / "out/tagged.jsonl")
    assert [(r.passes, r.level) for r in tagged] == [(16, 1), (12, 1), (11, 2), (8, 2), (5, 3), (2, 4), (1, 5), (0, 5)]
    assert (tmp_path / "out/x.png").exists()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"answer": ["1", "2"]}, "r.jsonl:2: 'answer' is one final answer"),
        ({"answer": None}, "r.jsonl:2: 'answer' is one final answer"),
        ({}, "r.jsonl:2: the record lacks ['answer']"),
    ],
)
def test_an_answer_that_is_no_text_is_told_with_its_row(row: dict[str, object], told: str, tmp_path: Path) -> None:
    lines = [{"id": "a", "question": "?", "answer": "3"}, {"id": "b", "question": "?", **row}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError) as error:
        records.read(tmp_path / "r.jsonl")
    assert told in str(error.value)


def test_gold_answers_that_cannot_be_judged_are_told_by_name() -> None:
    good = record()
    bad = [
        record(id="b", answer="7}"),
        record(id="c", answer_type="numeral"),
        record(id="d", answer="E", choices={"A": "1"}),
    ]
    checks.answers([good], "train.jsonl")
    with pytest.raises(UserError) as error:
        checks.answers([good, *bad], "train.jsonl")
    told = str(error.value)
    assert told.startswith("train.jsonl: record 'b'") and "braces" in told and "and 2 more: 'c', 'd'" in told

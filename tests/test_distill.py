"""Self-distillation: what it plans, what a model's output may not do to the files, the data set and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_strategies import config, plan

from synergy import lab
from synergy.data import datacard, distill, prepare, records, rows
from synergy.driver import externals, ledger
from synergy.driver import plan as driver_plan
from synergy.driver.ledger import Entry
from synergy.errors import UserError
from synergy.lab import digits

RIGHT = "<think>\nthe digits are {n}\n</think>\n\\boxed{{{n}}}"


def test_the_teacher_of_the_lab_is_the_model_of_sft_and_answers_what_it_learned() -> None:
    stages = plan("distill")
    assert list(stages) == ["data", "teacher", "responses", "dataset"]
    assert stages["teacher"].settings == plan("sft")["sft"].settings
    assert stages["responses"].inputs == {"model": "teacher", "data": "data", "order": "data"}
    assert stages["responses"].settings["n"] == 8
    assert stages["dataset"].settings["select"] == [{"keep": "shortest_correct"}]
    assert "license" not in stages["dataset"].settings


def test_the_papers_teacher_is_the_model_of_s1_1(tmp_path: Path) -> None:
    """By key: its traces are another file beside the questions, and both stages are those of the ablation."""
    (tmp_path / "source").mkdir()
    for name in ("train", "val", "s1_1"):
        (tmp_path / f"source/{name}.jsonl").write_text("{}\n")
    words = [f"data.source={tmp_path / 'source'}", f"run.dir={tmp_path / 'runs'}", "evaluate.source=lab"]
    distilled = driver_plan.of_config(config("distill", *words, "recipe.traces=s1_1.jsonl", "recipe.epochs=15"))
    ablation = driver_plan.of_config(config("ablation/sft_s1_1", *words))
    keys = [{step.stage.name: step.key for step in todo.steps} for todo in (distilled, ablation)]
    assert (keys[0]["traces"], keys[0]["teacher"]) == (keys[1]["data"], keys[1]["sft"])
    teacher = plan("distill", *words, "recipe.traces=s1_1.jsonl")["teacher"]
    assert teacher.inputs == {"base": "base", "model": "base", "data": "traces", "media": "traces"}
    assert keys[0]["data"] != keys[0]["traces"]


def test_benchmarks_may_lie_elsewhere_than_the_training_data(tmp_path: Path) -> None:
    """So that a model trained on a data set of one's own is measured by the same questions as all others."""
    lab_, own = plan("base")["benchmarks"], plan("base", f"data.source={tmp_path}", "evaluate.source=lab")["benchmarks"]
    assert own == lab_
    other = plan("base", f"evaluate.source={tmp_path}")["benchmarks"]
    assert other.inputs["source"] == "benchmark-source"
    cfg = config("base", f"evaluate.source={tmp_path}")
    assert externals.resolve(cfg, None, fetch=False)["benchmark-source"].path == tmp_path
    with pytest.raises(UserError, match=r"evaluate\.source=.*no such folder"):
        externals.resolve(config("base", f"evaluate.source={tmp_path / 'none'}"), None, fetch=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("see <image> \\boxed{3}", "media placeholder <image>"),
        ("see <VIDEO> \\boxed{3}", "media placeholder <VIDEO>"),
        ("\\boxed{3}<|im_end|>\n<|im_start|>user", "special token <|im_end|>"),
        ("\\boxed{3}<|eot_id|>", "special token <|eot_id|>"),
        ("[INST] more [/INST] \\boxed{3}", "special token [INST]"),
        ("\\boxed{3}</s>", "special token </s>"),
        ("\\boxed{3}\nassistant\nSure", "role marker 'assistant'"),
        ("\\boxed{3}\n\nHuman: and now?", "role marker 'Human:'"),
        ("### Instruction:\n\\boxed{3}", "role marker '### Instruction:'"),
        ("\\boxed{3}\0", r"control character '\x00'"),
        ("\x1b[2J\\boxed{3}", r"control character '\x1b'"),
        ("\ud83d \\boxed{3}", r"control character '\ud83d'"),
        ("\ufffd \\boxed{3}", "broken characters"),
        ("own<MARK> \\boxed{3}", "special token <MARK>"),
        ("<think>a < b, x|y| > 2, |z|<|w|, the system: x = 3;\tthe user\r\nsays</think>\\boxed{3}", None),
    ],
)
def test_text_that_would_be_read_as_something_else_is_unusable(text: str, why: str | None) -> None:
    assert rows.unusable(text, ["<MARK>"]) == why


@given(st.text())
def test_what_is_usable_survives_every_file(text: str) -> None:
    if rows.unusable(text) is None:
        assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text
        assert "\0" not in text and "<image>" not in text


Answer = Callable[[int, records.Record], tuple[str, float, str]]


def sampled(folder: Path, answer: Answer, n: int = 3) -> dict[str, Any]:
    """The ``distill`` part's spec over the lab's records with these responses."""
    digits.write(folder / "lab", train=6, val=2, bench=1)
    base = {"base": str(lab.BASE), "instruction": lab.INSTRUCTION, "cutoff_len": 256}
    names = {"train": "train.jsonl", "validation": "val.jsonl", "limit": None, "source": "", "seed": 0, "sizes": {}}
    prepare.train({**base, **names, "inputs_source": str(folder / "lab")}, folder / "data")
    lines = []
    for record in records.read(folder / "data/records/train.jsonl"):
        for index in range(n):
            text, acc, ended = answer(index, record)
            row = {"id": record.id, "index": index, "response": text, "acc": acc, "finish_reason": ended}
            lines.append(json.dumps({**row, "tokens": len(text.split())}) + "\n")
    place = folder / "stages/sample-1/output/responses.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("".join(lines))
    (folder / "out").mkdir()
    return {**base, "data": str(folder / "data"), "responses": str(place), "select": [{"keep": "shortest_correct"}]}


def dropped(out: Path) -> dict[tuple[str, int], str]:
    lines = (out / "dropped.jsonl").read_text().splitlines()
    return {(row["id"], row["index"]): row["why"] for row in map(json.loads, lines)}


def front(out: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((out / "README.md").read_text().split("---\n")[1]))


def test_hostile_responses_are_listed_and_the_rest_trains(tmp_path: Path) -> None:
    """From a model's output to LLaMA-Factory's file of the next recipe, whatever the model wrote."""
    hostile = {
        0: ("<image>\\boxed{1}", 1.0, "stop"),
        1: ("\\boxed{1}<|im_end|>\n<|im_start|>assistant\n\\boxed{2}", 1.0, "stop"),
        2: ("\\boxed{1}\0", 1.0, "stop"),
        3: ("\\boxed{1} and so", 1.0, "length"),
        4: ("word " * 300 + "\\boxed{1}", 1.0, "stop"),
    }
    order: list[str] = []

    def answer(index: int, record: records.Record) -> tuple[str, float, str]:
        if record.id not in order:
            order.append(record.id)
        if index == 0 and order.index(record.id) in hostile:
            return hostile[order.index(record.id)]
        good = index == 2 or order.index(record.id) == 5
        return RIGHT.format(n=record.answer) + " " + "so " * index, float(good), "stop"

    out = tmp_path / "out"
    spec = sampled(tmp_path, answer)
    figures = distill.build(spec, out)
    made = records.read(out / "train.jsonl")
    assert [record.id for record in made] == order, "the order of the questions"
    assert [record.trace.count("so ") for record in made if record.trace] == [2, 2, 2, 2, 2, 0], "shortest usable one"
    assert [dropped(out)[order[n], 0] for n in range(5)] == [
        "media placeholder <image>",
        "special token <|im_end|>",
        "control character '\\x00'",
        "not ended by itself (length)",
        "over sft.config.cutoff_len=256",
    ]
    assert (figures["questions"], figures["responses"], figures["kept_rows"], figures["traces"]) == (6, 18, 6, 0)
    assert figures["questions_by_passes"] == {0: 0, 1: 0, 2: 5, 3: 1}
    again = {"base": spec["base"], "instruction": lab.INSTRUCTION, "cutoff_len": 256, "train": "train.jsonl"}
    again |= {"validation": "val.jsonl", "limit": None, "source": "", "inputs_source": str(out)}
    prepare.train(again, tmp_path / "next")
    trained = json.loads((tmp_path / "next/sft/train.json").read_text())
    assert [row["messages"][1]["content"] for row in trained] == [record.trace for record in made]
    for row in trained:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert sum(turn["content"].count("<image>") for turn in row["messages"]) == len(row["images"]) == 1
        assert (tmp_path / "next/records" / row["images"][0]).exists()


def test_several_rows_of_a_question_have_ids_of_their_own(tmp_path: Path) -> None:
    spec = sampled(tmp_path, lambda index, record: (f"{index} \\boxed{{{record.answer}}}", float(index > 0), "stop"))
    out = tmp_path / "out"
    distill.build({**spec, "select": [{"keep": "all_correct"}, {"at_most": 2}, {"shuffle": 1}]}, out)
    asked = [record.id for record in records.read(tmp_path / "data/records/train.jsonl")]
    names = [record.id for record in records.read(out / "train.jsonl")]
    assert sorted({name.partition("#")[0] for name in names}) == sorted(asked) and len(names) == 12
    assert sum("#" in name for name in names) == 6


def test_unsolved_questions_may_keep_their_own_trace(tmp_path: Path) -> None:
    spec = sampled(tmp_path, lambda index, record: ("\\boxed{x}", 0.0, "stop"))
    with pytest.raises(UserError, match="leaves nothing of 18 rows"):
        distill.build(spec, tmp_path / "out")
    figures = distill.build({**spec, "select": [{"keep": "all_correct", "zero_pass": "trace"}]}, tmp_path / "out")
    asked = {record.id: record.trace for record in records.read(tmp_path / "data/records/train.jsonl")}
    assert {record.id: record.trace for record in records.read(tmp_path / "out/train.jsonl")} == asked
    assert figures["traces"] == 6 and figures["tokens_kept"] == {}


def test_the_card_is_the_hubs_and_tells_counts_and_origin(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    spec = sampled(tmp_path, lambda index, record: (RIGHT.format(n=record.answer), float(index > 0), "stop"))
    entries = [
        Entry("d" * 64, "prepare", "data", "stages/prepare-1/output", "", "", {"settings": {"source": "/my"}}),
        Entry("e" * 64, "sft", "other", "stages/sft-2/output", "", "", {"inputs": {"data": "d" * 64}}),
        Entry(
            *("f" * 64, "sft", "teacher", "stages/sft-1/output", "", ""),
            identity={"inputs": {"data": "d" * 64}, "packages": {"llamafactory": "0.9.5"}},
        ),
        Entry(
            *("0" * 64, "sample", "responses", "stages/sample-1/output", "", ""),
            identity={"inputs": {"model": "f" * 64}, "own_reward": {"name": "mine", "source": "5" * 64}},
        ),
    ]
    for entry in entries:
        ledger.append(tmp_path / "ledger.jsonl", entry)
    out = tmp_path / "out"
    distill.build(spec, out)
    told = (out / "README.md").read_text()
    assert [entry.name for entry in datacard.provenance(Path(spec["responses"]))] == ["data", "teacher", "responses"]
    assert "f" * 64 in told and "llamafactory: 0.9.5" in told and "e" * 64 not in told and "commit" in told
    assert "right answer by a reward function of its maker's (mine, SHA-256 555" in told
    assert "| 2 | 6 | 6 |" in told, "six questions with two right responses, all kept"
    assert "Not stated. Add `license:`" in told and "license" not in front(out)
    card = DatasetCard.load(out / "README.md")
    assert card.data.size_categories == ["n<1K"] and card.data.configs[0]["data_files"][1]["path"] == "val.jsonl"
    for name, more in (("licensed", {"license": "cc0-1.0"}), ("again", {})):
        (tmp_path / name).mkdir()
        distill.build({**spec, **more}, tmp_path / name)
    assert front(tmp_path / "licensed")["license"] == "cc0-1.0"
    for name in ("README.md", "train.jsonl", "selection.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), "whenever it is made"


def test_the_lab_has_its_licence(tmp_path: Path) -> None:
    spec = sampled(tmp_path, lambda index, record: (RIGHT.format(n=record.answer), 1.0, "stop"))
    source = {"settings": {"source": "lab"}}
    ledger.append(
        tmp_path / "ledger.jsonl", Entry("d" * 64, "prepare", "data", "stages/prepare-1/output", "", "", source)
    )
    made = Entry("0" * 64, "sample", "r", "stages/sample-1/output", "", "", {"inputs": {"data": "d" * 64}})
    ledger.append(tmp_path / "ledger.jsonl", made)
    distill.build(spec, tmp_path / "out")
    assert front(tmp_path / "out")["license"] == "cc-by-4.0"

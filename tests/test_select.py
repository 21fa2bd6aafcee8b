"""Selection in steps: laws that hold for any rows, what each step means, what it tells, and errors that name the step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_strategies import config, plan

from synergy import lab, strategies
from synergy.data import mixture, prepare, records, rows, select, selection
from synergy.data.records import Record
from synergy.data.rows import RECORDS, RESPONSES, TRACES, Row
from synergy.errors import UserError
from synergy.lab import digits


@st.composite
def candidates(draw: st.DrawFn) -> list[Row]:
    """Responses to some questions as a sample stage gives them, with a trace each."""
    found: list[Row] = []
    for number in range(draw(st.integers(1, 6))):
        right = draw(st.lists(st.booleans(), min_size=4, max_size=4))
        about: dict[str, Any] = {
            "source": draw(st.sampled_from("ab")),
            "level": draw(st.integers(1, 5)),
            "passes": sum(right),
            "runs": 4,
        }
        for index, good in enumerate(right):
            tokens = draw(st.integers(1, 9))
            found.append(Row(f"q{number}", RESPONSES, correct=good, tokens=tokens, index=index, **about))
        found.append(Row(f"q{number}", TRACES, **about))
    return found


FILTERS: list[dict[str, Any]] = [
    {"without": "easiest"},
    {"without": "zero_pass"},
    {"level": [2, 3]},
    {"passes": [1, 3]},
]
STABLE = [
    *FILTERS,
    {"keep": "shortest_correct"},
    {"keep": "all_correct"},
    {"keep": "all_correct", "zero_pass": "trace"},
    {"keep": "shortest_correct", "zero_pass": "trace"},
    {"at_most": 2},
    {"mix": {"a": 2, "b": 1}},
    {"mix": {"responses": 3, "traces": 1}},
]
"""Steps that keep the order, and that a second time change nothing."""
EVERY = [*STABLE, {"shuffle": 3}]


def step(given: dict[str, Any]) -> select.Step:
    (made,) = select.parse([given], "x")
    return made


def kept(given: dict[str, Any], found: list[Row]) -> list[Row]:
    try:
        return step(given)(found)[0]
    except UserError as error:
        assume("too few rows" not in str(error))  # a mix that these sources don't allow
        raise


@given(candidates(), st.sampled_from(EVERY))
def test_no_step_invents_loses_or_repeats_a_row(found: list[Row], given: dict[str, Any]) -> None:
    after = kept(given, found)
    dropped = step(given)(found)[1]
    assert Counter(after) + Counter(row for row, _ in dropped) == Counter(found)
    assert all(why for _, why in dropped)


@given(candidates(), st.sampled_from(STABLE))
def test_steps_keep_the_order_and_twice_is_once(found: list[Row], given: dict[str, Any]) -> None:
    after = kept(given, found)
    assert after == [row for row in found if row in set(after)]
    assert not after or kept(given, after) == after


@given(candidates(), st.sampled_from(FILTERS), st.sampled_from(FILTERS))
def test_what_looks_at_questions_alone_may_change_places(
    found: list[Row], one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert kept(one, kept(other, found)) == kept(other, kept(one, found))


@given(candidates(), st.integers(0, 9))
def test_a_shuffle_is_its_seed(found: list[Row], seed: int) -> None:
    once, again = (kept({"shuffle": seed}, found) for _ in range(2))
    assert once == again and sorted(map(repr, once)) == sorted(map(repr, found))


def test_seeds_differ() -> None:
    found = [Row(str(n)) for n in range(8)]
    assert kept({"shuffle": 0}, found) != kept({"shuffle": 1}, found)


@given(candidates())
def test_what_is_kept_of_a_question(found: list[Row]) -> None:
    right = {row.id for row in found if row.correct}
    shortest = kept({"keep": "shortest_correct"}, found)
    assert {row.id for row in shortest} == right and len(shortest) == len(right)
    assert all(row.tokens == min(r.tokens for r in found if r.id == row.id and r.correct) for row in shortest)
    assert kept({"keep": "all_correct"}, found) == [row for row in found if row.correct]
    mixed = kept({"keep": "all_correct", "zero_pass": "trace"}, found)
    assert {row.id for row in mixed} == {row.id for row in found}
    assert {row.id for row in mixed if row.origin == TRACES} == {row.id for row in found} - right


@given(candidates(), st.integers(1, 3), st.integers(1, 3))
def test_at_most_takes_the_first_and_the_stricter_wins(found: list[Row], one: int, other: int) -> None:
    counts = Counter(row.id for row in kept({"at_most": one}, found))
    assert all(counts[name] == min(one, n) for name, n in Counter(row.id for row in found).items())
    assert kept({"at_most": one}, kept({"at_most": other}, found)) == kept({"at_most": min(one, other)}, found)


@given(candidates(), st.integers(1, 4), st.integers(1, 4))
def test_a_mix_has_its_ratio_exactly_and_is_the_largest(found: list[Row], one: int, other: int) -> None:
    before = Counter(row.source for row in found)
    after = Counter(row.source for row in kept({"mix": {"a": one, "b": other}}, found))
    assert after["a"] * other == after["b"] * one > 0
    assert after["a"] + one > before["a"] or after["b"] + other > before["b"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("easiest", r"x is a list of steps, not 'easiest'; each is one of: without, level"),
        (["easiest"], r'x\[0\]="easiest": a step is a mapping with one of'),
        ([{"without": "easiest"}, {"leval": [1]}], r'x\[1\]={"leval": \[1\]}: a step is a mapping with one of'),
        ([{"keep": "all_correct", "at_most": 2}], "a mapping with one of"),
        ([{"without": "hard"}], "one of easiest, zero_pass"),
        ([{"level": 3}], "a list of levels from 1 to 5"),
        ([{"level": [0]}], "a list of levels from 1 to 5"),
        ([{"level": []}], "a list of levels from 1 to 5"),
        ([{"passes": [5, 1]}], "two whole numbers"),
        ([{"passes": [1, True]}], "two whole numbers"),
        ([{"keep": "shortest"}], "shortest_correct, all_correct"),
        ([{"keep": "all_correct", "zero_pass": "traces"}], "zero_pass is drop or trace"),
        ([{"keep": "all_correct", "zero": "trace"}], "zero is no option of keep"),
        ([{"at_most": 0}], "a whole number from 1"),
        ([{"mix": {"a": 0.5}}], r"whole numbers from 1 by source, such as {a: 2, b: 1}"),
        ([{"mix": {}}], "whole numbers from 1"),
        ([{"shuffle": "yes"}], "a seed"),
        ([{"shuffle": -1}], "a seed"),
    ],
)
def test_a_step_that_cannot_be_is_told_by_place(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        select.parse(given, "x")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"level": [1]}, "select step 1, .*record 'q' has neither pass count nor level; synergy tag"),
        ({"without": "easiest"}, "synergy tag"),
        ({"keep": "all_correct"}, "'q' is no response"),
        ({"mix": {"a": 1, "b": 1}}, r"too few rows for this ratio; sources and their rows: {'a': 1}"),
    ],
)
def test_a_step_that_cannot_be_taken_is_told(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        selection.apply([step(given)], [Row("q", source="a")], tmp_path)


def test_a_selection_tells_what_it_kept_and_why(tmp_path: Path) -> None:
    found = [
        Row("a", RESPONSES, level=1, passes=2, runs=2, correct=True, tokens=5),
        Row("a", RESPONSES, level=1, passes=2, runs=2, correct=True, tokens=4, index=1),
        Row("b", RESPONSES, level=4, passes=1, runs=2, correct=True, tokens=9),
        Row("b", RESPONSES, level=4, passes=1, runs=2, index=1),
    ]
    steps = select.parse([{"without": "easiest"}, {"keep": "shortest_correct"}], "x")
    refused = [(Row("c", RESPONSES), "special token <|im_end|>")]
    assert selection.apply(steps, found, tmp_path, refused) == [found[2]]
    report = json.loads((tmp_path / "selection.json").read_text())
    assert [(told["rows"], told["questions"]) for told in report] == [
        ([5, 4], [3, 2]),
        ([4, 2], [2, 1]),
        ([2, 1], [1, 1]),
    ]
    lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(line["id"], line["index"], line["step"], line["why"]) for line in lines] == [
        ("c", 0, 0, "special token <|im_end|>"),
        ("a", 0, 1, "every run is right"),
        ("a", 1, 1, "every run is right"),
        ("b", 1, 2, "wrong answer"),
    ]
    with pytest.raises(UserError, match=r'select step 1, {"level": \[5\]}, leaves nothing of 4 rows'):
        selection.apply(select.parse([{"level": [5]}], "x"), found, tmp_path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=6))
def test_data_mixing_is_what_it_was_before_it_was_steps(
    tmp_path_factory: pytest.TempPathFactory, right: list[list[bool]]
) -> None:
    """Right responses question by question, the trace where there is none: the loop that the steps took the place of."""
    folder = tmp_path_factory.mktemp("mixture")
    out = folder / "out"
    out.mkdir()
    found = [Record(f"q{n}", "How many?", "3", trace=f"<think>{n}</think>\\boxed{{3}}") for n in range(len(right))]
    records.write(folder / "records/train.jsonl", found)
    (folder / "records/train_visual_tokens.json").write_text("{}")
    told = [
        {"id": f"q{n}", "index": k, "response": f"{n}.{k}", "tokens": 1, "acc": float(good), "finish_reason": "stop"}
        for n, several in reversed(list(enumerate(right)))
        for k, good in enumerate(several)
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    spec = {"data": str(folder), "base": str(lab.BASE), "instruction": None, "cutoff_len": 256}
    figures = mixture.build({**spec, "responses": str(folder / "r.jsonl")}, out)
    wanted = [
        text
        for n, several in enumerate(right)
        for text in [f"{n}.{k}" for k, good in enumerate(several) if good] or [str(found[n].trace)]
    ]
    made = json.loads((out / "sft/train.json").read_text())
    assert [row["messages"][1]["content"] for row in made] == wanted
    zero = sum(not any(several) for several in right)
    assert (figures["responses"], figures["kept"], figures["zero_pass"]) == (len(told), len(wanted) - zero, zero)


def test_training_records_are_chosen_before_anything_is_made_of_them(tmp_path: Path) -> None:
    """data.select, from the config to LLaMA-Factory's file, and no other key where it is not set."""
    digits.write(tmp_path / "lab", train=8, val=2, bench=1)
    found = records.read(tmp_path / "lab/train.jsonl")
    tagged = [Record(**{**vars(r), "level": 1 + n % 5, "passes": 2 * n}) for n, r in enumerate(found)]
    records.write(tmp_path / "lab/train.jsonl", tagged)
    words = (f"data.source={tmp_path / 'lab'}", "data.select=[{passes: [4, 14]}, {level: [2, 4]}]")
    stage = plan("sft", *words)["data"]
    assert "select" not in plan("sft", words[0])["data"].settings
    out = tmp_path / "out"
    out.mkdir()
    prepare.train({**stage.settings, "base": str(lab.BASE), "inputs_source": str(tmp_path / "lab")}, out)
    wanted = [record.id for record in tagged if 4 <= (record.passes or 0) <= 14 and record.level in (2, 4)]
    assert (
        [record.id for record in records.read(out / "records/train.jsonl")]
        == wanted
        == json.loads((out / "order.json").read_text())
    )
    assert len(json.loads((out / "sft/train.json").read_text())) == len(wanted) > 0
    assert json.loads((out / "selection.json").read_text())[1]["step"] == {"level": [2, 4]}
    for value, told in (("[{keep: all_correct}]", r"data\.select: keep chooses"), ("[{mix: 3}]", r"data\.select\[0\]")):
        with pytest.raises(UserError, match=told):
            strategies.stages(config("sft", f"data.select={value}"))


@pytest.mark.parametrize("recipe", ["data_mixing", "distill"])
def test_recipes_refuse_to_train_on_wrong_responses(recipe: str) -> None:
    with pytest.raises(UserError, match="wrong responses would be trained on"):
        plan(recipe, "recipe.select=[{at_most: 2}]")
    with pytest.raises(UserError, match=r"recipe\.select\[0\]"):
        plan(recipe, "recipe.select=[{keep: best}]")


def test_data_mixing_has_a_new_key_only_for_another_selection() -> None:
    assert "select" not in plan("data_mixing")["mixture"].settings
    other = plan("data_mixing", "recipe.select=[{keep: shortest_correct, zero_pass: trace}, {shuffle: 0}]")
    assert other["mixture"].settings["select"][1] == {"shuffle": 0}


def test_records_are_rows_with_their_own_counts() -> None:
    assert rows.of_records([Record("a", "?", "3", level=2, passes=9)]) == [Row("a", RECORDS, level=2, passes=9)]

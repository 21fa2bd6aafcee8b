"""Rules of the five official benchmarks: golds, choices, and answers outside of any box. No VLMEvalKit needed."""

from __future__ import annotations

import pytest

from eval import rules
from reward_fns.answer import judge

CHOICE = {"A": "red", "B": "blue", "C": "green", "answer": "B"}
FLOAT = {"answer": "1.2", "answer_type": "float", "precision": "1.0", "choices": "[]"}


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{B}",
        "\\boxed{red} no, \\boxed{blue}",
        "<answer>B</answer>",
        "The correct option is B.",
        "Option B is correct.",
        "Option A is wrong, so the answer must be **B**.",
        "I choose B",
        "We look at it.\n\nB",
        "We look at it.\n\n**(B)**",
        "We look at it.\n\nB. blue",
        "<think>A or C</think>\n### Answer\nB",
        "The correct answer is B (blue).",
        "The answer is B, so we are done.",
        "The answer is B, as the angle is 30.",
    ],
)
def test_a_choice_is_found_without_a_box(response: str) -> None:
    for kind, text in (("mmstar", CHOICE), ("mathverse", {"choices": "['red', 'blue', 'green']", "answer": "B"})):
        found = rules.verdict(kind, text, response)
        assert found.correct and found.answer == "B", found
        assert not rules.verdict(kind, {**text, "answer": "C"}, response).correct


@pytest.mark.parametrize(
    "response",
    [
        "",
        "A beautiful picture",
        "It is a hard question, and Option A is wrong.",
        "<think>The answer is B",
        "The answer is \\boxed{B",
        "I see\nB and C",
        "Whether it is one or the other I could not make out.",
    ],
)
def test_nothing_is_extracted_where_nothing_is_said(response: str) -> None:
    """Such responses are what a judge is asked about."""
    found = rules.verdict("mmstar", CHOICE, response)
    assert not found.correct and found.answer is None


@pytest.mark.parametrize(
    ("answer", "right"), [("1.2", True), ("1.23", True), ("1.16", True), ("1.3", False), ("1.26", False), ("x", False)]
)
def test_mathvista_floats_are_rounded_to_the_precision(answer: str, right: bool) -> None:
    assert rules.verdict("mathvista", FLOAT, f"\\boxed{{{answer}}}").correct == right


def test_mathvista_types() -> None:
    whole = {"answer": "12", "answer_type": "integer", "precision": "", "choices": "[]"}
    listed = {"answer": "[1, 2]", "answer_type": "list", "choices": "[]"}
    text = {"answer": "blue", "answer_option": "B", "answer_type": "text", "choices": "['red', 'blue']"}
    for row, answer, right in (
        (whole, "12.0", True),
        (whole, "12.4", False),
        (listed, "1,2", True),
        (listed, "[1, 2]", True),
        (listed, "2, 1", False),
        (text, "B", True),
        (text, "blue", True),
        (text, "A", False),
    ):
        assert rules.verdict("mathvista", row, f"\\boxed{{{answer}}}").correct == right, (row, answer)


def test_mmmu_open_questions_may_have_several_right_answers() -> None:
    row = {"answer": "['24/7', '3.429']"}
    assert [rules.verdict("mmmu", row, f"\\boxed{{{a}}}").correct for a in ("24/7", "3.429", "3.5")] == [
        True,
        True,
        False,
    ]
    assert rules.verdict("mmmu", {"answer": "[unclosed"}, "\\boxed{7}").correct is False
    assert rules.golds("mmmu", {"answer": "['x']", "A": "['x']", "B": "y"}) == ["['x']"]


def test_own_benchmarks_are_judged_as_rl_rewards_are() -> None:
    """`open` and `choice` have no rules beyond the checker's: results of both must agree."""
    for kind, row in (("open", {"answer": "7"}), ("choice", CHOICE)):
        for response in ("We look.\n\nB", "We look.\n\n7", "I choose B", "\\boxed{7}", ""):
            found, plain = rules.verdict(kind, row, response), judge(response, row["answer"], rules.choices(kind, row))
            assert (found.correct, found.answer, found.rule) == (plain.correct, plain.answer, plain.rule)

"""Dataset classes for local TSVs: loading and prompts are VLMEvalKit's, scoring is ours.

The stock scoring is never used: MathVision's calls Python's `eval` on the model's output, the others ask a judge API.
"""

# VLMEvalKit is untyped, so its classes count as Any.
# mypy: disable-error-code="misc"

from __future__ import annotations

import ast
import json
import os
import string
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from vlmeval.dataset.image_mcq import CustomMCQDataset, ImageMCQDataset, MMMUDataset
from vlmeval.dataset.image_vqa import CustomVQADataset, MathVerse, MathVision, MathVista

from eval import session
from eval.spec import Question
from reward_fns.answer import judge

VERDICTS = "_verdicts.jsonl"


def lettered(text: Mapping[str, str]) -> dict[str, str] | None:
    """Choices from the columns A, B, ..."""
    return {c: text[c] for c in string.ascii_uppercase if text.get(c)} or None


def listed(text: Mapping[str, str]) -> dict[str, str] | None:
    """Choices from the column `choices`, a Python list literal."""
    values = ast.literal_eval(text.get("choices") or "[]")
    return {string.ascii_uppercase[i]: str(value) for i, value in enumerate(values)} or None


class RuleScored:
    """Mixin before a stock class: marks each prompt with its question, and judges by `reward_fns.answer`."""

    dataset_name: str

    def gold(self, text: Mapping[str, str]) -> str:
        return text["answer"]

    def choices(self, text: Mapping[str, str]) -> dict[str, str] | None:
        return lettered(text)

    def build_prompt(self, line: Any) -> list[dict[str, Any]]:
        """The stock prompt; its first part also carries the question's index, which VLMEvalKit gives no model."""
        row = self.data.iloc[line] if isinstance(line, int) else line  # type: ignore[attr-defined]
        message: list[dict[str, Any]] = super().build_prompt(row)
        return [{**message[0], "question": row["index"]}, *message[1:]]

    def evaluate(self, eval_file: str, **_: Any) -> dict[str, float]:
        """Judge a prediction file; verdicts go beside it, accuracies in percent to VLMEvalKit's tables."""
        state = session.current()
        try:
            state.check()
            with open(eval_file, encoding="utf-8") as file:
                predictions = {str(row["index"]): str(row["prediction"]) for row in json.load(file)}
            verdicts = [self._verdict(q, predictions) for q in state.questions[self.dataset_name]]
        except Exception as err:
            state.fail(f"benchmark {self.dataset_name}: cannot score {eval_file}: {type(err).__name__} {err}")
            raise
        lines = (json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts)
        session.write_atomic(Path(os.path.splitext(eval_file)[0] + VERDICTS), "".join(lines))
        return accuracies(verdicts)

    def _verdict(self, question: Question, predictions: Mapping[str, str]) -> dict[str, Any]:
        if question.index not in predictions:
            raise KeyError(f"no prediction for question {question.index}")
        verdict = judge(predictions[question.index], self.gold(question.text), self.choices(question.text))
        return {
            "id": question.id,
            "index": question.index,
            "level": question.level,
            "correct": bool(verdict.correct),
            "answer": verdict.answer,
            "rule": verdict.rule,
        }


def accuracies(verdicts: list[dict[str, Any]]) -> dict[str, float]:
    """Percent correct, overall and per level."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        groups["Overall"].append(verdict["correct"])
        if verdict["level"] is not None:
            groups[f"L{verdict['level']}"].append(verdict["correct"])
    return {name: 100.0 * sum(hits) / len(hits) for name, hits in sorted(groups.items(), reverse=True)}


class AsWritten(RuleScored):
    """Mixin: text stays text. pandas would turn choices 3, 4 and an empty cell into 3.0, 4.0, and 'None' into no choice."""

    def load_data(self, dataset: str) -> pd.DataFrame:
        data: pd.DataFrame = super().load_data(dataset)
        rows = session.current().questions[dataset]
        for column in ("question", "answer", "hint", *string.ascii_uppercase):
            if column in data:
                data[column] = pd.Series([q.text[column] or None for q in rows], index=data.index, dtype=object)
        return data


class SynergyOpen(AsWritten, CustomVQADataset):
    """Any question with a free answer; the prompt is the question."""


class SynergyChoice(AsWritten, CustomMCQDataset):
    """Any question with choices in columns A, B, ...; the answer is a letter."""


class LocalTable(RuleScored):
    """Mixin for official sets: without a URL and a checksum, VLMEvalKit reads the local TSV as it is, level column and all."""

    DATASET_URL: ClassVar[dict[str, str]] = {}
    DATASET_MD5: ClassVar[dict[str, str]] = {}


class SynergyMMStar(LocalTable, ImageMCQDataset):
    """MMStar."""


class SynergyMMMU(LocalTable, MMMUDataset):
    """MMMU; its open questions have no letters."""


class SynergyMathVision(LocalTable, MathVision):
    """MathVision; the column `level` of the official table is a human's grade, not a difficulty level of ours."""

    def choices(self, text: Mapping[str, str]) -> dict[str, str] | None:
        return listed(text)


class SynergyMathVista(LocalTable, MathVista):
    """MathVista; `answer_option` is the letter where `answer` is the choice's text."""

    def choices(self, text: Mapping[str, str]) -> dict[str, str] | None:
        return listed(text)

    def gold(self, text: Mapping[str, str]) -> str:
        return text.get("answer_option") or text["answer"]


class SynergyMathVerse(LocalTable, MathVerse):
    """MathVerse; choices stand in the question's text only, so a letter is compared as text."""

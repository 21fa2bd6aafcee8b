"""Dataset classes for local TSVs: loading and prompts are VLMEvalKit's, scoring is ours.

The stock scoring is never used: MathVision's calls Python's `eval` on the model's output, the others ask a judge API.
"""

# VLMEvalKit is untyped, so its classes count as Any.
# mypy: disable-error-code="misc"

from __future__ import annotations

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

from eval import rules, session
from eval.spec import Question

VERDICTS = "_verdicts.jsonl"


class RuleScored:
    """Mixin before a stock class: marks each prompt with its question, and judges by `eval.rules`."""

    dataset_name: str

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
                keys = {str(row["index"]): str(row["prediction"]) for row in json.load(file)}
            responses = {index: state.response(key) for index, key in keys.items()}
            kind = next(bench.kind for bench in state.spec.benchmarks if bench.name == self.dataset_name)
            verdicts = [verdict(kind, q, responses) for q in state.questions[self.dataset_name]]
        except Exception as err:
            state.fail(f"benchmark {self.dataset_name}: cannot score {eval_file}: {type(err).__name__} {err}")
            raise
        lines = (json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts)
        session.write_atomic(Path(os.path.splitext(eval_file)[0] + VERDICTS), "".join(lines))
        return accuracies(verdicts)


def verdict(kind: str, question: Question, responses: Mapping[str, str]) -> dict[str, Any]:
    if question.index not in responses:
        raise KeyError(f"no prediction for question {question.index}")
    found = rules.verdict(kind, question.text, responses[question.index])
    return {
        "id": question.id,
        "index": question.index,
        "level": question.level,
        "correct": bool(found.correct),
        "answer": found.answer,
        "rule": found.rule,
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


class LocalTable(AsWritten):
    """Mixin for official sets: without a URL and a checksum, VLMEvalKit reads the local TSV as it is, level column and all."""

    DATASET_URL: ClassVar[dict[str, str]] = {}
    DATASET_MD5: ClassVar[dict[str, str]] = {}


class SynergyMMStar(LocalTable, ImageMCQDataset):
    """MMStar."""


class SynergyMMMU(LocalTable, MMMUDataset):
    """MMMU; its open questions have no letters."""


class SynergyMathVision(LocalTable, MathVision):
    """MathVision; the column `level` of the official table is a human's grade, not a difficulty level of ours."""


class SynergyMathVista(LocalTable, MathVista):
    """MathVista."""


class SynergyMathVerse(LocalTable, MathVerse):
    """MathVerse."""

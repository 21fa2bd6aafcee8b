"""What was measured: the evaluated models of a plan and their answers, read from the evaluate stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.driver.plan import Plan, Step
from synergy.errors import UserError

BASE = "base"
_JUDGED = {"benchmark", "run", "id", "level", "correct", "answer", "tokens", "finish_reason"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, judged. tokens: its length; truncated: it met the length limit; extracted: an answer was found in it."""

    benchmark: str
    run: int
    id: str
    level: int | None
    correct: bool
    tokens: int
    truncated: bool
    extracted: bool


@dataclass(frozen=True)
class Model:
    """An evaluated model. name: what the report calls it; checkpoint: the stage that made it; step: its evaluation."""

    name: str
    checkpoint: str
    step: Step
    answers: tuple[Answer, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.step.stage.settings

    @property
    def file(self) -> Path:
        return results(self.step)


def evaluates(todo: Plan) -> bool:
    """Whether there is anything to report: it ends with an evaluation. ``tag`` has one in its middle, to find levels by."""
    return todo.steps[-1].stage.kind == "evaluate"


def require_finished(todo: Plan, command: str) -> None:
    """Raises UserError naming the stages that are not finished, and the command that runs them."""
    if not evaluates(todo):
        raise UserError(f"recipe {todo.recipe} evaluates nothing, so there is no report of it")
    open_ = [step for step in todo.steps if not step.here or step.entry is None]
    if open_:
        names = ", ".join(f"{step.stage.name} ({step.why})" for step in open_)
        raise UserError(f"no report of recipe {todo.recipe} yet, unfinished: {names}. Run them with: {command}")


def results(step: Step) -> Path:
    return step.folder / "output" / "results.jsonl"


def models(todo: Plan) -> list[Model]:
    """The evaluated models in the order of the plan, the base model first. The last one that is not the base is what the
    recipe makes, so it bears the recipe's name; any other that of its stage."""
    steps = [step for step in todo.steps if step.stage.kind == "evaluate"]
    steps.sort(key=lambda step: step.stage.inputs["model"] != BASE)
    found = []
    for step in steps:
        checkpoint = step.stage.inputs["model"]
        final = step is steps[-1] and checkpoint != BASE
        found.append(Model(todo.recipe if final else checkpoint, checkpoint, step, tuple(answers(results(step)))))
    return found


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, one at a time: responses of a large evaluation are gigabytes."""
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line, and its row without the response, which is nearly all of the bytes: that is not parsed."""
    with file.open("rb") as stream:
        for line in stream:
            # Inside a JSON string each quote follows a backslash, so this can only be the key.
            head, found, _ = line.partition(b', "response": "')
            row = json.loads(head + b"}" if found else line)
            yield line, row if row.keys() >= _JUDGED else json.loads(line)


def chosen(file: Path, where: Callable[[Mapping[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """The whole rows that ``where`` wants, which sees them without the response."""
    return (json.loads(line) for line, row in _lines(file) if where(row))


def answers(file: Path) -> Iterator[Answer]:
    return (answer(row) for _, row in _lines(file))


def answer(row: Mapping[str, Any]) -> Answer:
    return Answer(
        benchmark=row["benchmark"],
        run=int(row["run"]),
        id=str(row["id"]),
        level=row["level"],
        correct=bool(row["correct"]),
        tokens=int(row["tokens"]),
        truncated=row["finish_reason"] == "length",
        extracted=row["answer"] not in (None, ""),
    )

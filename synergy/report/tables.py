"""The tables of a report, as text: the page and the Markdown show the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from synergy.driver.plan import Plan, Step
from synergy.report import form, paper
from synergy.report.history import Span
from synergy.report.measure import ALL, AVERAGE, LEVELS, PLACES, Gain, Level, Row
from synergy.report.results import BASE, Model


@dataclass(frozen=True)
class Table:
    """words: how many of the first columns hold words; the others hold numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def markdown(self) -> str:
        rule = ["---"] * self.words + ["---:"] * (len(self.columns) - self.words)
        return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in (self.columns, rule, *self.rows))


def escape(text: str) -> str:
    """Text in a Markdown cell: neither markup nor the end of the cell."""
    return re.sub(r"([\\`*_\[\]<>|$])", r"\\\1", text.replace("\n", " "))


def _places(rows: Sequence[Row]) -> list[str]:
    """The average first, then each benchmark."""
    return sorted(dict.fromkeys(row.benchmark for row in rows), key=lambda name: name != AVERAGE)


def results(rows: Sequence[Row], gains: Sequence[Gain], level: Level = ALL) -> Table:
    """Every model on every benchmark, all levels together."""
    return _results(rows, gains, [level], ("benchmark", "model"))


def levels(rows: Sequence[Row], gains: Sequence[Gain], benchmark: str) -> Table:
    """Every model on every level of one benchmark."""
    mine = [row for row in rows if row.benchmark == benchmark]
    return _results(mine, gains, PLACES, ("level", "model"))


def _results(rows: Sequence[Row], gains: Sequence[Gain], at: Sequence[Level], first: tuple[str, str]) -> Table:
    by_place = {(g.model, g.benchmark, g.level): g for g in gains}
    lines = []
    for benchmark in _places(rows):
        for level in at:
            for row in (r for r in rows if r.benchmark == benchmark and r.level == level):
                gain = by_place.get((row.model, benchmark, level))
                lines.append(
                    (
                        benchmark if first[0] == "benchmark" else str(level),
                        row.model,
                        form.count(row.n),
                        form.percent(row.accuracy, row.accuracy_std),
                        form.gain(gain.gain, gain.ci_low, gain.ci_high) if gain else form.NONE,
                        form.tokens(row.length_mean, row.length_std),
                        form.share(row.truncated),
                        form.share(row.extracted),
                    )
                )
    numbers = (
        "questions",
        "accuracy,\u00a0%",
        "gain over base [95\u00a0%]",
        "length, tokens",
        "cut off",
        "answer found",
    )
    return Table((*first, *numbers), tuple(lines), words=2)


def questions(rows: Sequence[Row]) -> Table:
    """How many questions each level has."""
    counts = {(row.benchmark, row.level): row.n for row in rows}
    names = [name for name in _places(rows) if name != AVERAGE]
    lines = ((name, *(form.count(counts.get((name, level), 0)) for level in PLACES)) for name in names)
    return Table(("benchmark", *(f"level {level}" for level in LEVELS), "all"), tuple(lines))


def paper_gains(models: Sequence[Model], gains: Sequence[Gain]) -> Table | None:
    """Our average gain per level beside the paper's, for the models that have a counterpart there; None without any."""
    names = [model.name for model in models if paper.knows(model.name)]
    if not names or not gains:
        return None
    mean = AVERAGE if any(g.benchmark == AVERAGE for g in gains) else gains[0].benchmark
    ours = {(g.model, g.level): g.gain for g in gains if g.benchmark == mean}
    columns = [f"{name}, {who}" for name in names for who in ("here", "paper")]
    lines = []
    for level in PLACES:
        cells = [form.signed(at.get((name, level))) for name in names for at in (ours, paper.gains())]
        lines.append((f"level {level}" if level != ALL else "all", *cells))
    return Table(("", *columns), tuple(lines))


def training(steps: Sequence[Step]) -> Table | None:
    """What the stages that choose questions and train did; None if there are none."""
    lines = []
    for step in steps:
        told = _training(step)
        if told:
            lines.append((step.stage.name, step.stage.note, "; ".join(told)))
    return Table(("stage", "what for", "what it did"), tuple(lines), words=3) if lines else None


def _training(step: Step) -> list[str]:
    seen: dict[str, Any] = step.entry.figures if step.entry else {}
    told = [str(seen[name]) for name in ("skipped", "warning") if name in seen]
    if "rl_rows" in seen:
        told.append(f"{form.count(seen['rl_rows'])} questions for RL")
        if seen.get("prefix"):
            told.append(
                f"{form.count(seen['zero_pass'])} zero-pass questions; {form.count(seen.get('sft_rows', seen['zero_pass']))} "
                f"rows for SFT with {form.share(seen['prefix'], 0)} of their trace"
            )
    if "kept" in seen:
        told.append(
            f"{form.count(seen['kept'])} of {form.count(seen['responses'])} responses are right and kept, and "
            f"{form.count(seen['zero_pass'])} zero-pass questions get their trace"
        )
    if step.stage.kind == "sample" and "responses" in seen:
        told.append(f"{form.count(seen['responses'])} responses, {form.share(seen['accuracy'])} right")
    if step.stage.kind in ("sft", "rl") and "steps" in seen:
        told.append(f"{form.count(seen['steps'])} steps")
    if "chosen_step" in seen:
        told.append(f"checkpoint of step {form.count(seen['chosen_step'])} chosen by the validation loss")
    if step.stage.kind == "merge" and "verified" in seen:
        told.append(
            f"{form.count(seen['verified'])} tensors verified, {form.count(seen['changed_tensors'])} unlike RL's"
        )
    for name in ("loss", "reward"):
        if f"{name}_first" in seen:
            told.append(f"{name} {form.figure(seen[f'{name}_first'])} → {form.figure(seen[f'{name}_last'])}")
    if step.stage.kind in ("sample", "rl") and "zero_pass" in seen:
        told.append(f"{form.count(seen['zero_pass'])} of {form.count(seen['questions'])} questions never solved")
    return told


def stages(spans: Sequence[Span]) -> Table:
    """The timeline in words."""
    lines = []
    for span in spans:
        entry = span.step.entry
        assert entry is not None
        began = datetime.fromtimestamp(entry.started, UTC).strftime("%Y-%m-%d %H:%M:%S")
        how = "reused" if span.reused else "made"
        cost = (form.seconds(entry.seconds), form.memory(entry.peak_memory), str(entry.attempt))
        lines.append((span.step.stage.name, span.step.stage.note, how, began, *cost))
    return Table(("stage", "what for", "", "began, UTC", "took", "peak memory", "attempt"), tuple(lines), words=3)


def conditions(models: Sequence[Model]) -> Table:
    """How each model was asked."""
    lines = []
    for model in models:
        sampling = model.settings["sampling"]
        told = ", ".join(f"{name} {value}" for name, value in sampling.items())
        instruction = model.settings["instruction"] or "none"
        name = model.name if model.checkpoint in (model.name, BASE) else f"{model.name} (stage {model.checkpoint})"
        lines.append((name, str(model.settings["runs"]), told, instruction))
    return Table(("model", "runs", "sampling", "instruction added to the question"), tuple(lines), words=4)


def versions(todo: Plan) -> Table:
    """Versions of the frameworks, and the stage kinds that computed with them."""
    found: dict[tuple[str, str], list[str]] = {}
    for step in todo.steps:
        for name, version in (step.entry.identity.get("packages", {}) if step.entry else {}).items():
            kinds = found.setdefault((name, version), [])
            if step.stage.kind not in kinds:
                kinds.append(step.stage.kind)
    return Table(
        ("package", "version", "used by"),
        tuple((*package, ", ".join(kinds)) for package, kinds in sorted(found.items())),
        words=3,
    )

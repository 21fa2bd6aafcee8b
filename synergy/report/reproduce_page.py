"""The report of a reproduction: its tables, also as CSV, LaTeX and Markdown, its figures and words, and its files."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from synergy.driver import identity
from synergy.driver.plan import Plan
from synergy.report import (
    beside,
    build,
    dynamics,
    explorer,
    form,
    latex,
    pages,
    reproduce,
    results,
    survey,
    tables,
    words,
)
from synergy.report.measure import AVERAGE
from synergy.report.reproduce import Cell, Entry, Made
from synergy.report.specs import OTHERS, SPECS, UNITS, Spec
from synergy.report.tables import Table

SCHEMA = 1
VERDICTS = (
    "Within: our 95 % interval over questions, or our mean ± the standard deviation between trainings, holds the paper's "
    "value, give or take its rounding or, for Figure 1, the error of reading it off the picture. Above, below: neither does. "
    "Not comparable: the reason says what sets the two apart; both are shown all the same, and nothing follows from their "
    "difference."
)
WORDS = (
    "Here: how often a word of a response begins with it, per 1,000 responses, upper or lower case. Paper: totals over its "
    "responses to MathVision, as printed; it leaves unstated how many responses those are, and how it counted."
)
DYNAMICS = (
    "In the form of the paper's Figures 4, 11, 12 and 13. Solid: RL, over its own steps; diamonds: a round of SFT came before "
    "this step. Dashed: SFT, over its own, a long one as a running mean over a twentieth of its steps. Several seeds: mean, "
    "and a band from the least to the most. Recipes that share a training, as data_mixing and model_merging do "
    "with rl, are drawn once."
)


@dataclass(frozen=True)
class Part:
    """A table or figure of the paper in our numbers. missing: the recipes that have no row, each with the reason."""

    spec: Spec
    cells: list[Cell]
    missing: dict[str, str]


def write(names: Sequence[str], made: Sequence[Made], missing: Mapping[str, str]) -> Path:
    """Writes the report over finished evaluations and returns the page. missing: recipe -> why it has no number.

    Raises UserError for an unfinished stage or a run directory that can't be written.
    """
    for one in made:
        results.require_finished(one.plan, f"synergy run {shlex.join(one.task.words)}")
    keys = sorted({one.step.key for one in made} | {one.base.key for one in made})
    mark = identity.sha(" ".join([*names, *keys]))[:8]
    place = made[0].plan.space.root / "reports" / f"reproduce-{mark}"
    return pages.publish(place, lambda out: _write(list(names), made, missing, out))


def _write(names: list[str], made: Sequence[Made], missing: Mapping[str, str], out: Path) -> None:
    found = reproduce.entries(made)
    told = parts(names, found, missing)
    for part in told:
        _files(part, out / "tables")
    drawn = pages.in_base64(_draw(told, found, out / "figures"))
    shown = {**content(names, told, found), "figures": drawn}
    pages.files(out, "reproduce", document(names, told, found, missing, str(shown["created"])), shown)


def parts(names: Sequence[str], found: Sequence[Entry], missing: Mapping[str, str]) -> list[Part]:
    given = any(one.made[0].plan.recipe == "checkpoints" for one in found)
    told = []
    for spec in (SPECS[name] for name in names):
        cells = reproduce.cells(spec, found)
        there = {cell.recipe for cell in cells}
        gone = (
            {row.recipe: "none of the given checkpoints" for row in spec.rows if row.recipe not in there}
            if given
            else {}
        )
        for name, why in missing.items():
            if name.split(" ")[0] in {row.recipe for row in spec.rows}:
                gone[name] = why
        told.append(Part(spec, cells, gone))
    others = reproduce.cells(OTHERS, found)
    return [*told, Part(OTHERS, others, {})] if others else told


def table(part: Part, whole: bool = True) -> Table:
    """Our numbers beside the paper's. whole: every benchmark; else their average alone."""
    spec = part.spec
    item = ("word",) if spec.what == "words" else ("level",) if spec.by_level else ()
    lines = []
    for cell in part.cells:
        if whole or spec.what == "words" or cell.benchmark == AVERAGE:
            where = (cell.benchmark,) if whole or spec.what == "words" else ()
            first = (cell.model, *where, *((cell.item,) if item else ()))
            lines.append((*first, form.count(cell.trainings), *_numbers(cell, spec), cell.verdict))
    columns = ("model", *(("benchmark",) if whole or spec.what == "words" else ()), *item)
    numbers = ("trainings", "here", "± trainings", "paper", "difference", "verdict")
    return Table((*columns, *numbers), tuple(lines), words=len(columns))


def _numbers(cell: Cell, spec: Spec) -> tuple[str, str, str, str]:
    """Ours with its interval, its spread, the paper's and the difference."""
    if spec.what == "words":
        total = None if cell.paper is None else int(cell.paper)
        ours, theirs = form.tokens(cell.ours), f"{form.count(total)}{' in all' if total is not None else ''}"
    elif spec.what == "gain":
        ours, theirs = form.gain(cell.ours, cell.low, cell.high), form.signed(cell.paper)
    else:
        write = form.percent if spec.what == "accuracy" else form.tokens
        known = cell.low is not None and cell.high is not None
        ours = write(cell.ours) + (f" [{write(cell.low)}, {write(cell.high)}]" if known else "")
        theirs = write(cell.paper)
    spread = form.tokens(cell.spread) if spec.what in ("length", "words") else form.percent(cell.spread)
    return ours, spread, theirs, form.signed(cell.difference)


def _files(part: Part, folder: Path) -> None:
    """The table as CSV, in full precision, LaTeX and Markdown."""
    folder.mkdir(exist_ok=True)
    shown = table(part)
    with (folder / f"{part.spec.name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*(field.name for field in fields(Cell)), "difference"])
        for cell in part.cells:
            writer.writerow([*asdict(cell).values(), cell.difference])
    caption = f"{part.spec.title}: {UNITS[part.spec.what]}, here and in the paper."
    (folder / f"{part.spec.name}.tex").write_text(latex.table(shown, caption, part.spec.name), encoding="utf-8")
    (folder / f"{part.spec.name}.md").write_text(shown.markdown() + "\n", encoding="utf-8")


def _draw(told: Sequence[Part], found: Sequence[Entry], out: Path) -> list[Path | None]:
    paths = []
    for part in told:
        shown = [cell for cell in part.cells if part.spec.what == "words" or cell.benchmark == AVERAGE]
        paths.append(beside.numbers(shown, UNITS[part.spec.what], out / f"{part.spec.name}.png"))
    paths.append(beside.lengths({one.name: one.surveys for one in found}, out / "lengths.png"))
    paths.append(dynamics.draw({one.name: _plans(one) for one in found}, out / "dynamics.png"))
    return paths


def _plans(entry: Entry) -> list[Plan]:
    return [one.plan for one in entry.made]


def headline(told: Sequence[Part]) -> list[str]:
    """A sentence per table: how many of its numbers agree with the paper's."""
    sentences = []
    for part in told:
        printed = [cell for cell in part.cells if cell.paper is not None and cell.ours is not None]
        count = Counter(cell.verdict for cell in printed)
        said = ", ".join(f"{number} {word}" for word, number in count.most_common())
        if part.spec is not OTHERS:
            sentences.append(f"{part.spec.title}: {said or 'no number here that the paper prints too'}.")
    return sentences


def content(names: Sequence[str], told: Sequence[Part], found: Sequence[Entry]) -> dict[str, Any]:
    """What both templates show."""
    surveys = {one.name: one.surveys for one in found}
    steps = {step.folder: step for one in found for made in one.made for step in made.plan.steps}
    whole = Plan("reproduce", list(steps.values()), found[0].made[0].plan.space, {})
    models = [one.model for one in found]
    return {
        "title": f"reproduction of {', '.join(name.replace('=', ' ') for name in names)}",
        "created": pages.date(pages.now()),
        "cost": build.cost(whole),
        "headline": headline(told),
        "explorer": explorer.data(
            [row for one in found for row in one.strategy.rows],
            [gain for one in found for gain in one.strategy.gains],
            explorer.SEEDS,
            {(one.name, *place): std for one in found for place, std in one.strategy.spread.items()},
            {one.name: explorer.Look(one.recipe or one.name) for one in found},
        ),
        "parts": [
            {
                "name": part.spec.name,
                "title": part.spec.title,
                "unit": UNITS[part.spec.what],
                "short": table(part, whole=False),
                "whole": None if part.spec.what == "words" else table(part),
                "missing": part.missing,
                "note": WORDS if part.spec.what == "words" else "",
            }
            for part in told
        ],
        "verdicts": VERDICTS,
        "shares": survey.shares(surveys),
        "quantiles": survey.quantiles(surveys),
        "dynamics": DYNAMICS,
        "level_rule": words.LEVEL_RULE,
        "conditions": tables.conditions(models),
        "versions": tables.versions(whole),
    }


def document(
    names: Sequence[str], told: Sequence[Part], found: Sequence[Entry], missing: Mapping[str, str], created: str
) -> dict[str, Any]:
    """report.json."""
    return {
        "schema": SCHEMA,
        "reproduces": list(names),
        "created": created,
        "models": [
            {
                "model": one.name,
                "recipe": one.recipe,
                "trainings": one.strategy.trainings,
                "seeds": [made.task.cfg.seed for made in one.made],
                "comparable": not one.apart,
                "apart": one.apart,
            }
            for one in found
        ],
        "not_run": dict(missing),
        "tables": {
            part.spec.name: {
                "title": part.spec.title,
                "unit": UNITS[part.spec.what],
                "missing": part.missing,
                "cells": [{**asdict(cell), "difference": cell.difference} for cell in part.cells],
            }
            for part in told
        },
    }

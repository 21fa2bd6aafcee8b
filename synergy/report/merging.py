"""Merged models: what SFT and RL had changed before (``merge/compare.py``), and accuracy and length over the SFT ratio."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synergy.driver.plan import Plan
from synergy.report import form, style
from synergy.report.bars import COLUMNS
from synergy.report.measure import ALL, AVERAGE, LEVELS, PLACES, Row
from synergy.report.results import Model
from synergy.report.tables import Table

Module = Mapping[str, Any]
"""A row of parents.json; see ``merge.compare.Module``."""
WHOLE = "whole"
ANNOTATED = 12
"""Layers up to which the cells of the heat map bear their numbers."""
PANELS: tuple[tuple[str, str, Callable[[float], float], tuple[float, float]], ...] = (
    ("delta_ratio", "size of SFT's change over RL's, orders of magnitude", lambda v: math.log10(max(v, 1e-9)), (-2, 2)),
    ("cosine", "cosine of the two changes", float, (-1, 1)),
    ("sign_conflict", "share of opposite signs", float, (0, 1)),
)
LEVEL_COLOURS = ("#c7e0f4", "#8fc1e3", "#56a0cf", "#1f77b0", "#0b4f80")
"""Levels from easy to hard, light to dark."""


def parents(todo: Plan) -> list[Module]:
    """The comparison of the parents that the plan's merges share; nothing without a merge."""
    for step in todo.steps:
        if step.stage.kind == "merge":
            places = [step.folder / part / "parents.json" for part in ("output", "records")]
            file = next((place for place in places if place.exists()), places[0])  # the checkpoint may have been let go
            found: list[Module] = json.loads(file.read_text())["modules"]
            return found
    return []


def table(modules: Sequence[Module]) -> Table | None:
    """A row per part of the model, all layers together."""
    columns = (
        "part", "parameters", "SFT changes it by", "RL by", "ratio", "cosine", "opposite signs", "changed by SFT", "by RL",
    )  # fmt: skip
    lines = []
    for row in modules:
        if row["layer"] is None:
            shares = (row[name] / row["norm_base"] if row["norm_base"] else None for name in ("delta_sft", "delta_rl"))
            ratio = form.NONE if row["delta_ratio"] is None else f"{row['delta_ratio']:.3g}"
            cosine = form.NONE if row["cosine"] is None else f"{row['cosine']:+.2f}".replace("-", "\u2212")
            cells = [form.share(row[name]) for name in ("sign_conflict", "changed_sft", "changed_rl")]
            sizes = [form.share(share, 2) for share in shares]
            lines.append((row["part"], form.count(row["parameters"]), *sizes, ratio, cosine, *cells))
    return Table(columns, tuple(lines)) if lines else None


def heatmap(modules: Sequence[Module], path: Path) -> Path | None:
    """Parts by layers, a panel per measure; grey: neither changed. None without a merge."""
    if not modules:
        return None
    parts = list(dict.fromkeys(row["part"] for row in modules))
    layers = 1 + max((row["layer"] for row in modules if row["layer"] is not None), default=-1)
    with style.look():
        figure = style.figure(0.4 + len(PANELS) * (0.45 + 0.19 * len(parts)))
        axes = figure.subplots(len(PANELS), 1, squeeze=False)[:, 0]
        for at, (name, title, scale, limits) in zip(axes, PANELS, strict=True):
            cells = np.full((len(parts), layers + 1), np.nan)
            for row in modules:
                if row[name] is not None:
                    column = 0 if row["layer"] is None else row["layer"] + 1
                    cells[parts.index(row["part"]), column] = scale(row[name])
            _cells(figure, at, cells, limits)
            at.set_title(title)
            at.set_yticks(range(len(parts)), parts)
            ticks = range(0, layers, max(1, math.ceil(layers / 16)))
            at.set_xticks([0, *(n + 1 for n in ticks)], [WHOLE, *map(str, ticks)])
        axes[-1].set_xlabel("layer (of the language model, or of the vision tower for its blocks)")
        return style.save(figure, path)


def _cells(figure: Figure, at: Axes, cells: Any, limits: tuple[float, float]) -> None:
    at.set_facecolor(style.FAINT)
    drawn = at.imshow(cells, cmap="RdBu_r", vmin=limits[0], vmax=limits[1], aspect="auto")
    figure.colorbar(drawn, ax=at, pad=0.01, fraction=0.03).outline.set_visible(False)
    at.tick_params(length=0)
    at.axvline(0.5, color="white", linewidth=2)
    if cells.shape[1] <= ANNOTATED:
        middle, reach = sum(limits) / 2, (limits[1] - limits[0]) / 2
        for (y, x), value in np.ndenumerate(cells):
            if not math.isnan(value):
                colour = "white" if abs(value - middle) > 0.6 * reach else style.INK
                at.annotate(f"{round(value, 2) + 0:.2f}", (x, y), ha="center", va="center", fontsize=6.5, color=colour)


def ratios(todo: Plan, models: Sequence[Model]) -> dict[str, float]:
    """Name of an evaluated model -> its SFT ratio: the merged ones, and their parents at 0 and 1."""
    merges = [step.stage for step in todo.steps if step.stage.kind == "merge"]
    found = {stage.name: float(stage.settings["ratio"]) for stage in merges}
    for stage in merges:
        found |= {stage.inputs["rl"]: 0.0, stage.inputs["sft"]: 1.0}
    there = {model.name: found[model.checkpoint] for model in models if model.checkpoint in found}
    return dict(sorted(there.items(), key=lambda item: item[1]))


def sweep(rows: Sequence[Row], at_ratio: Mapping[str, float], name: str, unit: str, path: Path) -> Path | None:
    """A figure of a row (``accuracy`` or ``length_mean``) over the SFT ratio: a panel per benchmark, a curve per level. None
    for fewer than two ratios."""
    if len(at_ratio) < 2:
        return None
    panels = list(dict.fromkeys(row.benchmark for row in rows))
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    by_place = {(row.benchmark, row.level, row.model): getattr(row, name) for row in rows}
    with style.look():
        figure = style.figure(0.5 + 2.3 * lines)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for at, panel in zip_longest(axes.ravel(), panels):
            if panel is None:
                at.set_visible(False)
                continue
            for level, colour in zip(PLACES, (*LEVEL_COLOURS, style.INK), strict=True):
                points = [(x, by_place.get((panel, level, model))) for model, x in at_ratio.items()]
                drawn = [(x, y) for x, y in points if y is not None]
                label = "all levels" if level == ALL else f"level {level}"
                at.plot(*zip(*drawn, strict=True), "o-", color=colour, markersize=3.5, label=label) if drawn else None
            at.set_title("average of benchmarks" if panel == AVERAGE else panel)
            at.set_xticks(list(at_ratio.values()), [f"{x:g}" for x in at_ratio.values()])
            at.set_xlabel("SFT ratio (0: the RL model, 1: the SFT model)" if columns == 1 else "SFT ratio")
            style.grid(at)
        for at in axes[:, 0]:
            at.set_ylabel(unit)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(LEVELS) + 1)
        return style.save(figure, path)

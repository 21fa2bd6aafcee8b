"""Figures of a reproduction: our numbers beside the paper's, and how response lengths are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from synergy.report import style, survey
from synergy.report.measure import ALL, PLACES
from synergy.report.reproduce import Cell
from synergy.report.survey import Survey

COLUMNS = 3


def numbers(cells: Sequence[Cell], unit: str, path: Path) -> Path | None:
    """A line per model, a panel per item (level or word): our number filled, its interval over questions thick and its spread
    between trainings thin; the paper's hollow. None where nothing of ours is there, or nothing but zeros."""
    shown = [cell for cell in cells if cell.ours is not None]
    if not any(cell.ours for cell in shown):
        return None
    models = list(dict.fromkeys(cell.model for cell in shown))
    items = list(dict.fromkeys(cell.item for cell in shown))
    colours = style.colours(models)
    columns = min(COLUMNS, len(items))
    lines = math.ceil(len(items) / columns)
    words = shown[0].item in survey.WORDS
    with style.look():
        figure = style.figure(0.7 + lines * (0.55 + 0.24 * len(models)))
        axes = figure.subplots(lines, columns, sharex=not words, sharey=True, squeeze=False)
        places: list[Axes] = axes.ravel().tolist()
        for at, item in zip_longest(places, items):
            if item is None:
                at.set_visible(False)
                continue
            for cell in (one for one in shown if one.item == item):
                _number(at, cell, models.index(cell.model), colours[cell.model], not words)
            at.set_title("" if item == ALL else f"level {item}" if item.isdigit() else item)
            at.set_yticks(range(len(models)), models)
            at.set_ylim(len(models) - 0.5, -0.5)
            at.grid(axis="x", color=style.FAINT, linewidth=0.6)
            at.tick_params(length=0)
            if words:
                at.set_xlim(left=0)
            elif min(cell.ours or 0.0 for cell in shown) < 0:
                at.axvline(0, color=style.INK, linewidth=0.8)
        for at in places[max(0, len(items) - columns) : len(items)]:
            at.set_xlabel(unit)
            at.tick_params(labelbottom=True)
        handles = [Line2D([], [], marker="o", color=style.INK, linestyle="", label="here")]
        if not words and any(cell.paper is not None for cell in shown):
            handles.append(_hollow(style.INK, "paper"))
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        return style.save(figure, path)


def _number(at: Axes, cell: Cell, line: int, colour: str, paper: bool) -> None:
    assert cell.ours is not None
    if cell.spread is not None:
        at.plot([cell.ours - cell.spread, cell.ours + cell.spread], [line, line], color=colour, linewidth=0.9)
    if cell.low is not None and cell.high is not None:
        at.plot([cell.low, cell.high], [line, line], color=colour, linewidth=2.4, alpha=0.55, solid_capstyle="butt")
    at.plot(cell.ours, line, "o", color=colour, markersize=5)
    if paper and cell.paper is not None:
        at.plot(cell.paper, line, "D", markerfacecolor="white", markeredgecolor=colour, markersize=5)


def _hollow(colour: str, label: str) -> Line2D:
    return Line2D([], [], marker="D", markerfacecolor="white", markeredgecolor=colour, linestyle="", label=label)


def lengths(found: Mapping[str, Sequence[Survey]], path: Path) -> Path:
    """Share of responses up to a length, a panel per level, a curve per model; lengths on a log axis, as they differ by an
    order of magnitude between models."""
    colours = style.colours(list(found))
    levels = [level for level in PLACES if any(survey.lengths(surveys, level).size for surveys in found.values())]
    columns = min(COLUMNS, len(levels))
    lines = math.ceil(len(levels) / columns)
    with style.look():
        figure = style.figure(0.7 + 1.9 * lines)
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        places: list[Axes] = axes.ravel().tolist()
        for at, level in zip_longest(places, levels):
            if level is None:
                at.set_visible(False)
                continue
            for model, surveys in found.items():
                tokens = np.maximum(survey.lengths(surveys, level), 1)
                if tokens.size:
                    at.ecdf(tokens, color=colours[model], linewidth=1.4, label=model)
            at.set_xscale("log")
            at.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            at.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            at.xaxis.set_minor_formatter(NullFormatter())
            at.set_title("all levels" if level == ALL else f"level {level}")
            at.set_ylim(0, 1.02)
            style.grid(at)
        for at in places[::columns]:
            at.set_ylabel("share of responses")
        for at in places[max(0, len(levels) - columns) : len(levels)]:
            at.set_xlabel("tokens, at most")
            at.tick_params(labelbottom=True)
        handles = [Line2D([], [], color=colours[model], label=model) for model in found]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(found), 4))
        return style.save(figure, path)

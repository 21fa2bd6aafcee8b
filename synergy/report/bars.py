"""Figures over difficulty levels: accuracy, response length, and gain over the base model as in the paper's Figure 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from synergy.report import style
from synergy.report.measure import AVERAGE, LEVELS, Gain, Level, Row
from synergy.report.regression import Shift

Bar = tuple[float, float, float]
"""Height, and how far the whisker reaches below and above it; nan: none."""
Place = tuple[str, str, Level]
"""Model, benchmark and level."""
COLUMNS = 3
RUNS = ("runs that defined the levels", "fresh runs")


def accuracy(rows: Sequence[Row], path: Path) -> Path:
    """Accuracy per level; whiskers: one standard deviation between runs."""
    bars = {(r.model, r.benchmark, r.level): _whiskered(r.accuracy, r.accuracy_std, 100.0) for r in rows}
    return _draw(bars, [r.model for r in rows], [r.benchmark for r in rows], "accuracy in percent", path, (0, 102))


def length(rows: Sequence[Row], path: Path) -> Path:
    """Response length per level; whiskers: one standard deviation between responses."""
    bars = {(r.model, r.benchmark, r.level): _whiskered(r.length_mean, r.length_std, math.inf) for r in rows}
    return _draw(bars, [r.model for r in rows], [r.benchmark for r in rows], "response length in tokens", path)


def gains(found: Sequence[Gain], path: Path) -> Path:
    """Gain over the base model per level, a panel per benchmark and one for their average; whiskers: its interval."""
    bars: dict[Place, Bar] = {}
    for g in found:
        known = g.ci_low is not None and g.ci_high is not None
        ends = (g.gain - g.ci_low, g.ci_high - g.gain) if known else (math.nan, math.nan)  # type: ignore[operator]
        bars[g.model, g.benchmark, g.level] = (g.gain, *ends)
    return _draw(bars, [g.model for g in found], [g.benchmark for g in found], "gain over base in points", path)


def regression(found: Sequence[Shift], path: Path) -> Path | None:
    """The base model's accuracy per level on the runs that defined the levels and on fresh ones; whiskers: intervals. None
    without any."""
    bars: dict[Place, Bar] = {}
    for shift in found:
        for name, one in zip(RUNS, (shift.defining, shift.fresh), strict=True):
            known = one.low is not None and one.high is not None
            ends = (one.value - one.low, one.high - one.value) if known else (math.nan, math.nan)  # type: ignore[operator]
            bars[name, shift.benchmark, shift.level] = (one.value, *ends)
    panels, colours = (
        [shift.benchmark for shift in found],
        dict(zip(RUNS, (style.FAINT, style.BASE_COLOUR), strict=True)),
    )
    return _draw(bars, RUNS, panels, "accuracy in percent", path, (0, 102), colours) if bars else None


def _whiskered(value: float, std: float | None, most: float) -> Bar:
    """A whisker of one deviation, kept between what is possible: 0 and ``most``."""
    return (value, math.nan, math.nan) if std is None else (value, min(std, value), min(std, most - value))


def _draw(
    bars: Mapping[Place, Bar],
    models: Sequence[str],
    benchmarks: Sequence[str],
    unit: str,
    path: Path,
    limits: tuple[float, float] | None = None,
    colours: Mapping[str, str] | None = None,
) -> Path:
    """Grouped bars: a panel per benchmark, levels on x, one colour per model."""
    names, panels = list(dict.fromkeys(models)), list(dict.fromkeys(benchmarks))
    colours = colours or style.colours(["base", *(name for name in names if name != "base")])
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with style.look():
        figure = style.figure(0.5 + 2.3 * lines)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        places: list[Axes] = axes.ravel().tolist()
        for at, panel in zip_longest(places, panels):
            if panel is None:
                at.set_visible(False)
            else:
                _panel(at, panel, names, colours, bars)
        for at in places[::columns]:
            at.set_ylabel(unit)
            if limits is not None:
                at.set_ylim(limits)
        _legend(figure, names, colours)
        return style.save(figure, path)


def _panel(at: Axes, panel: str, names: Sequence[str], colours: Mapping[str, str], bars: Mapping[Place, Bar]) -> None:
    width = 0.8 / max(2, len(names))
    for number, name in enumerate(names):
        there = [level for level in LEVELS if (name, panel, level) in bars]
        x = [level + (number - (len(names) - 1) / 2) * width for level in there]
        heights, below, above = (
            zip(*(bars[name, panel, level] for level in there), strict=True) if there else ((), (), ())
        )
        at.bar(x, heights, width * 0.92, color=colours[name])
        at.errorbar(x, heights, [below, above], fmt="none", ecolor=style.INK, elinewidth=0.8, capsize=1.6, capthick=0.8)
    at.axhline(0, color=style.INK, linewidth=0.8)
    at.set_title("average of benchmarks" if panel == AVERAGE else panel)
    at.set_xticks(LEVELS)
    at.set_xlim(0.4, 5.6)
    at.set_xlabel("difficulty level")
    style.grid(at)


def _legend(figure: Figure, names: Sequence[str], colours: Mapping[str, str]) -> None:
    handles = [Patch(color=colours[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(names), 4), handlelength=1.0)

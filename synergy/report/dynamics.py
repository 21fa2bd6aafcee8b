"""Training dynamics in the form of the paper's Figures 4, 11, 12 and 13: recipes overlaid, SFT and RL told apart.

RL is drawn over its own steps, all rounds of a recipe one after the other; a diamond marks the first step after a round of SFT.
SFT's loss has a panel of its own over SFT's steps, dashed. Several seeds: their mean, in a band from the least to the most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from synergy.driver.plan import Plan
from synergy.report import history, style

PANELS = (
    ("rl", "reward", "RL: mean reward"),
    ("rl", "validation_accuracy", "RL: validation accuracy"),
    ("rl", "entropy", "RL: entropy of the policy"),
    ("rl", "length", "RL: response length, tokens"),
    ("rl", "clipped", "RL: share of responses cut off"),
    ("sft", "loss", "SFT: loss"),
    ("rl", "sft_loss", "SFT within steps of RL: loss"),
    ("rl", "zero_pass", "RL: share of questions without a right rollout"),
    ("rl", "prefix", "RL: share of rollouts begun by a trace"),
)
"""Kind of stage, name in metrics.jsonl, title. The paper's clip ratio is of responses that met the limit of tokens."""
COLUMNS = 2
SMOOTH_FROM = 60
"""SFT's loss of so many steps or more is drawn as a running mean over a twentieth of them, before the faint loss itself."""


@dataclass(frozen=True)
class Line:
    """One metric of one recipe. switches: steps before which a round of SFT came."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    switches: Sequence[float]


def line(plans: Sequence[Plan], kind: str, name: str) -> Line | None:
    """plans: of the recipe's seeds. None where the metric was not logged. Only steps that every seed logged are drawn."""
    found: list[dict[float, float]] = []
    for todo in plans:
        curves = history.curves(todo, kind)
        values: dict[float, float] = {}
        for curve, begin in zip(curves, history.starts(curves)[:-1], strict=True):
            steps, points = curve.points(name)
            values |= {begin + step: value for step, value in zip(steps, points, strict=True) if math.isfinite(value)}
        found.append(values)
    steps = sorted(set.intersection(*(set(values) for values in found))) if found else []
    if not steps:
        return None
    table = np.array([[values[step] for step in steps] for values in found])
    switches = _switches(plans[0]) if kind == "rl" else []
    return Line(np.array(steps), table.mean(axis=0), table.min(axis=0), table.max(axis=0), switches)


def _switches(todo: Plan) -> list[float]:
    """The steps of RL that are the first after a round of SFT: their stage begins with what SFT, which trained, made."""
    trained = {curve.stage for curve in history.curves(todo, "sft") if curve.rows}
    models = {step.stage.name: step.stage.inputs.get("model") for step in todo.steps}
    curves = history.curves(todo, "rl")
    begins = zip(curves, history.starts(curves)[:-1], strict=True)
    return [begin + 1.0 for curve, begin in begins if models[curve.stage] in trained]


def draw(recipes: Mapping[str, Sequence[Plan]], path: Path) -> Path | None:
    """recipe -> plans of its seeds; None if none of them trained."""
    lines = {(kind, name): _lines(recipes, kind, name) for kind, name, _ in PANELS}
    panels = [panel for panel in PANELS if lines[panel[0], panel[1]]]
    if not panels:
        return None
    drawn = [recipe for recipe in recipes if any(recipe in found for found in lines.values())]
    colours = style.colours(drawn)
    rows = math.ceil(len(panels) / COLUMNS)
    with style.look():
        figure = style.figure(0.8 + 1.85 * rows)
        places: list[Axes] = figure.subplots(rows, COLUMNS, squeeze=False).ravel().tolist()
        for at, panel in zip_longest(places, panels):
            if panel is None:
                at.set_visible(False)
                continue
            kind, name, title = panel
            for recipe, one in lines[kind, name].items():
                _draw(at, one, colours[recipe], "--" if kind == "sft" else "-")
            at.set_title(title)
            at.set_xlabel(f"{kind.upper()} steps, all rounds together")
            at.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            at.margins(y=0.1)
            style.grid(at)
        handles = [Line2D([], [], color=colours[recipe], label=recipe) for recipe in drawn]
        if any(one.switches for found in lines.values() for one in found.values()):
            handles.append(Line2D([], [], marker="D", color=style.INK, linestyle="", label="after a round of SFT"))
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
        return style.save(figure, path)


def _lines(recipes: Mapping[str, Sequence[Plan]], kind: str, name: str) -> dict[str, Line]:
    """A line per recipe that trained by stages of its own; one that shares all of them is not drawn over another."""
    found: dict[tuple[str, ...], tuple[str, Line]] = {}
    for recipe, plans in recipes.items():
        one = line(plans, kind, name)
        keys = tuple(step.key for todo in plans for step in todo.steps if step.stage.kind == kind)
        if one is not None:
            found.setdefault(keys, (recipe, one))
    return dict(found.values())


def _draw(at: Axes, one: Line, colour: str, how: str) -> None:
    few = {"marker": "o", "markersize": 3.5} if len(one.steps) < 4 else {}
    window = len(one.steps) // 20 if how == "--" and len(one.steps) >= SMOOTH_FROM else 1
    if window > 1:
        at.plot(one.steps, one.mean, color=colour, linewidth=0.6, alpha=0.25)
    elif (one.high > one.low).any():
        at.fill_between(one.steps, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
    mean = np.convolve(one.mean, np.full(window, 1 / window), "valid")
    at.plot(one.steps[window - 1 :], mean, color=colour, linewidth=1.3, linestyle=how, **few)
    there = [step for step in one.switches if one.steps[0] <= step <= one.steps[-1]]
    at.plot(there, np.interp(there, one.steps, one.mean), "D", color=colour, markersize=4)

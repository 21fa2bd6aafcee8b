"""Colours and the look of all figures.

Colours: Okabe and Ito's palette, which colour-blind people can tell apart. A recipe has the same colour in every report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, DPI = 7.2, 170
"""Inches; text of nine points stays readable when a phone shrinks the picture."""
BASE_COLOUR = "#8c8c8c"
INK, FAINT = "#222222", "#d9d9d9"
RECIPES = {
    "sft": "#D55E00",
    "rl": "#0072B2",
    "two_stage": "#CC79A7",
    "interleaved": "#56B4E9",
    "progressive": "#009E73",
    "data_mixing": "#E69F00",
    "model_merging": "#B8A800",
}
KINDS = {
    "sft": "#D55E00",
    "rl": "#0072B2",
    "merge": "#B8A800",
    "sample": "#56B4E9",
    "evaluate": "#8c8c8c",
    "prepare": "#c4c4c4",
}
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "text.parse_math": False,
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per model: grey for the base, a recipe's own, and for any other model one that is still free."""
    taken = {RECIPES[name] for name in names if name in RECIPES}
    free = [colour for colour in RECIPES.values() if colour not in taken] or list(RECIPES.values())
    found: dict[str, str] = {}
    for name in names:
        others = sum(known not in RECIPES and known != "base" for known in found)
        found[name] = BASE_COLOUR if name == "base" else RECIPES.get(name) or free[others % len(free)]
    return found


def figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def look() -> Any:
    """The context in which figures are drawn and saved."""
    return rc_context(LOOK)


def grid(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.tick_params(length=0)


def save(drawn: Figure, path: Path) -> Path:
    drawn.savefig(path, facecolor="white", metadata={"Software": None})
    return path

"""Figures over training, time and length: curves of SFT and RL, the timeline of stages, accuracy against length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from synergy.report import form, history, style
from synergy.report.history import Curve, Span
from synergy.report.measure import Row

SFT = (("loss", "SFT: loss"),)
RL = (
    ("reward", "RL: mean reward"),
    ("validation_accuracy", "RL: accuracy on the validation split"),
    ("length", "RL: mean response length in tokens"),
    ("entropy", "RL: entropy of the policy"),
)


def training(sft: Sequence[Curve], rl: Sequence[Curve], path: Path) -> Path | None:
    """Curves over cumulative steps, stages one after the other; None if nothing was trained."""
    panels = [(sft, name, title) for name, title in SFT if any(c.points(name)[0] for c in sft)]
    panels += [(rl, name, title) for name, title in RL if any(c.points(name)[0] for c in rl)]
    if not panels:
        return None
    with style.look():
        figure = style.figure(0.3 + 1.65 * len(panels))
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for at, (curves, name, title) in zip(axes, panels, strict=True):
            _curve(at, curves, name, title)
        for at, (curves, *_), following in zip(axes, panels, [*(p[0] for p in panels[1:]), None], strict=True):
            if curves is following:  # RL's panels share their axis
                at.set_xticklabels([])
            else:
                at.set_xlabel(f"{'optimizer' if curves is sft else 'RL'} steps, all stages together")
        return style.save(figure, path)


def _curve(at: Axes, curves: Sequence[Curve], name: str, title: str) -> None:
    begins = history.starts(curves)
    colour = style.KINDS[curves[0].kind]
    for curve, begin, end in zip(curves, begins[:-1], begins[1:], strict=True):
        steps, values = curve.points(name)
        at.plot([begin + s for s in steps], values, color=colour, linewidth=1.3, marker=".", markersize=4)
        if name == "loss":
            steps, values = curve.points("eval_loss")
            at.plot([begin + s for s in steps], values, "D", color=style.INK, markersize=3.5, label="validation")
        if len(curves) > 1 and end > begin:
            at.annotate(
                curve.stage, ((begin + end) / 2, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8
            )  # fmt: skip
    for boundary in begins[1:-1]:
        at.axvline(boundary + 0.5, color=style.INK, linewidth=0.8, linestyle=(0, (3, 3)))
    if name == "loss" and any(curve.points("eval_loss")[0] for curve in curves):
        handles, labels = at.get_legend_handles_labels()
        at.legend(handles[:1], labels[:1], loc="upper right")
    at.set_title(title, pad=14 if len(curves) > 1 else 6)
    at.set_xlim(0, begins[-1] + 1)
    at.margins(y=0.12)
    style.grid(at)


def timeline(spans: Sequence[Span], path: Path) -> Path:
    """Stages in time, with seconds and peak memory beside each; hatched: reused from an earlier run."""
    end = max(span.begin + span.seconds for span in spans)
    unit, per = ("seconds", 1.0) if end < 300 else ("minutes", 60.0) if end < 3 * 3600 else ("hours", 3600.0)
    with style.look():
        figure = style.figure(0.9 + 0.27 * len(spans))
        at = figure.subplots()
        for number, span in enumerate(spans):
            colour = style.KINDS.get(span.step.stage.kind, style.BASE_COLOUR)
            hatch: dict[str, Any] = {"hatch": "////", "edgecolor": "white", "alpha": 0.75} if span.reused else {}
            at.barh(number, span.seconds / per, 0.66, left=span.begin / per, color=colour, linewidth=0, **hatch)
            _label(at, number, span, end, per)
        for before, after in pairwise(spans):
            if after.run != before.run:
                at.axvline(after.begin / per, color=style.INK, linewidth=0.8, linestyle=(0, (1, 2)))
        at.set_yticks(range(len(spans)), [span.step.stage.name for span in spans])
        at.invert_yaxis()
        at.set_xlim(0, end / per)
        at.set_xlabel(unit + (", pauses between runs cut out (dotted lines)" if spans[-1].run else ""))
        at.grid(axis="x", color=style.FAINT, linewidth=0.6)
        at.tick_params(length=0)
        kinds = dict.fromkeys(span.step.stage.kind for span in spans)
        handles = [Patch(color=style.KINDS.get(kind, style.BASE_COLOUR), label=kind) for kind in kinds]
        if any(span.reused for span in spans):
            handles.append(Patch(facecolor="#aaaaaa", edgecolor="white", hatch="////", linewidth=0, label="reused"))
        figure.legend(handles=handles, loc="outside upper left", ncols=6, handlelength=1.2)
        return style.save(figure, path)


def _label(at: Axes, number: int, span: Span, end: float, per: float) -> None:
    """Right of the bar; where there is no room, left of it; where there is none either, in it."""
    memory = span.step.entry.peak_memory if span.step.entry else 0
    text = form.seconds(span.seconds) + (f", {form.memory(memory)}" if memory else "")
    right = span.begin + span.seconds
    if right < 0.7 * end:
        x, shift, side, colour = right, 4, "left", style.INK
    elif span.begin > 0.3 * end:
        x, shift, side, colour = span.begin, -4, "right", style.INK
    else:
        x, shift, side, colour = right, -4, "right", "white"
    box = {"facecolor": "white" if colour == style.INK else "none", "edgecolor": "none", "pad": 0.6}
    at.annotate(
        text, (x / per, number), xytext=(shift, 0), textcoords="offset points", ha=side, va="center", color=colour,
        fontsize=8, bbox=box,
    )  # fmt: skip


def tradeoff(rows: Sequence[Row], path: Path) -> Path:
    """Accuracy against response length, a point per model; whiskers: one standard deviation, where there is one."""
    colours = style.colours([row.model for row in rows])
    with style.look():
        figure = style.figure(3.4)
        at = figure.subplots()
        for row in rows:
            x, y, colour = row.length_mean, row.accuracy, colours[row.model]
            at.plot(x, y, "o", markersize=6, color=colour, label=row.model)
            at.errorbar(
                x, y, row.accuracy_std, row.length_std, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2, capthick=1.0
            )  # fmt: skip
        at.set_xlabel("response length in tokens")
        at.set_ylabel("accuracy in percent")
        at.set_xlim(left=0)
        at.margins(x=0.08, y=0.12)
        style.grid(at)
        figure.legend(*at.get_legend_handles_labels(), loc="outside right upper")
        return style.save(figure, path)

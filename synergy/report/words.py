"""The sentences of a report: what came out, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synergy.report import form, measure
from synergy.report.measure import ALL, AVERAGE, CONFIDENCE, LEVELS, RESAMPLES, Gain, Level, Row
from synergy.report.results import BASE, Model

LEVEL_RULE = (
    "Difficulty levels: passes of the base model in 16 runs, level 1: 12 to 16, level 2: 8 to 11, level 3: 5 to 7, "
    "level 4: 2 to 4, level 5: 0 or 1 (the paper's rule)."
)
PAPER_LABEL = (
    "Gains in points of accuracy. Paper: Qwen2.5-VL-7B on five other benchmarks (arXiv 2507.07562; levels: mean of the bars "
    "of Figure 1, read off the picture; all: Tables 1, 2 and 6). The two are not comparable in size; the paper's are shown "
    "for the shape: which levels gain, and which lose."
)
PARENTS = (
    "What SFT and RL changed in the base model: Euclidean norm of the change, as a share of the base's own; ratio of the two; "
    "cosine between them; among the values that both changed, those that went opposite ways (half of them: no relation)."
)
BARS = "Whiskers: {}. Levels go from 1, easy for the base model, to 5, hard for it."


def headline(rows: Sequence[Row], gains: Sequence[Gain]) -> list[str]:
    """One sentence or two per model."""
    mean, at = measure.main(rows), where(rows)
    by_model = {row.model: row for row in rows if row.benchmark == mean and row.level == ALL}
    told = []
    for name, row in by_model.items():
        mine = {g.level: g for g in gains if g.model == name and g.benchmark == mean}
        if mine:
            told.append(_compared(name, row, by_model[BASE], mine[ALL], at) + _extremes(mine))
        else:
            right, length = form.percent(row.accuracy), form.tokens(row.length_mean)
            told.append(f"{name} answers {right} % right {at}, in {length} tokens on average.")
    return told


def where(rows: Sequence[Row]) -> str:
    """On what the figures of the headline are."""
    mean, count = measure.main(rows), len({row.benchmark for row in rows})
    return f"on the average of {count - 1} benchmarks" if mean == AVERAGE else f"on {mean}"


def _compared(name: str, row: Row, base: Row, gain: Gain, where: str) -> str:
    known = gain.ci_low is not None and gain.ci_high is not None
    ends = f" (95 % interval {form.signed(gain.ci_low)} to {form.signed(gain.ci_high)})" if known else ""
    unclear = known and gain.ci_low <= 0 <= gain.ci_high  # type: ignore[operator]
    ratio = f", {form.times(row.length_mean / base.length_mean)} the base's length" if base.length_mean > 0 else ""
    return (
        f"{name} answers {form.percent(row.accuracy)} % right {where}: "
        f"{form.signed(gain.gain)} points over the base model{ends}"
        f"{', which these questions cannot tell from no change' if unclear else ''}. "
        f"It writes {form.tokens(row.length_mean)} tokens on average{ratio}."
    )


def _extremes(mine: Mapping[Level, Gain]) -> str:
    levels = [mine[level] for level in LEVELS if level in mine]
    most, least = max(levels, key=lambda g: g.gain, default=None), min(levels, key=lambda g: g.gain, default=None)
    if most is None or least is None or form.signed(most.gain) == form.signed(least.gain):
        return ""
    return (
        f" The gain is largest on level {most.level} ({form.signed(most.gain)}) "
        f"and smallest on level {least.level} ({form.signed(least.gain)})."
    )


def baseline(models: Sequence[Model]) -> str:
    """Which runs the gains subtract, and why those."""
    base = next((model for model in models if model.checkpoint == BASE), None)
    if base is None or len(models) < 2:
        return ""
    return (
        f"Gains subtract, question by question, the base model's {base.settings['runs']} runs of stage {base.step.stage.name} "
        f"({base.step.key[:12]}). These are fresh runs: none of them took part in defining the difficulty levels, which came "
        "with the benchmark. Had the same runs done both, regression to the mean alone would lower level 1 and raise level 5 "
        "for any model. What is resampled are questions, each with the mean over its runs, not single answers. "
        f"Intervals: {form.share(CONFIDENCE, 0)} for each number by itself, paired bootstrap over questions "
        f"(BCa, {RESAMPLES:,} resamples). An average is the plain mean of the benchmarks."
    )


def columns() -> str:
    """What the columns of the result tables mean."""
    return (
        "Accuracy: mean over runs ± standard deviation between runs. Length: mean ± standard deviation over all responses. "
        "Cut off: share of responses that met the length limit. Answer found: share in which the checker found any answer."
    )

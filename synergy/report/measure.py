"""The numbers: accuracy and length per model, benchmark and level, and gains over the base model with their uncertainty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import special

from synergy.report.results import BASE, Answer, Model

Level = int | Literal["all"]
ALL: Literal["all"] = "all"
LEVELS = (1, 2, 3, 4, 5)
PLACES: tuple[Level, ...] = (*LEVELS, ALL)
AVERAGE = "average"
"""Stands for all benchmarks together: the plain mean of theirs, as in the paper."""
CONFIDENCE, RESAMPLES, SEED = 0.95, 9999, 0
_CELLS = 4_000_000
"""Numbers that one batch of resamples may hold."""


@dataclass(frozen=True)
class Row:
    """n: questions. accuracy: percent, mean over runs; accuracy_std: over the runs' accuracies (ddof 1), None for one run.
    length_*: tokens, over all responses (ddof 1). truncated, extracted: shares of responses, 0 to 1.

    In a row of ``average``, means and shares are plain means over benchmarks, accuracy_std is that of the runs' plain means,
    and length_std is over the responses of all benchmarks.
    """

    model: str
    benchmark: str
    level: Level
    n: int
    accuracy: float
    accuracy_std: float | None
    length_mean: float
    length_std: float | None
    truncated: float
    extracted: float


@dataclass(frozen=True)
class Gain:
    """Points of accuracy over the base model; the ends are None where the questions can't tell (one, or all alike)."""

    model: str
    benchmark: str
    level: Level
    gain: float
    ci_low: float | None
    ci_high: float | None


def benchmarks(models: Sequence[Model]) -> list[str]:
    """In the order in which they were evaluated."""
    return list(dict.fromkeys(answer.benchmark for model in models for answer in model.answers))


def main(rows: Sequence[Row]) -> str:
    """The benchmark whose numbers stand for all: their average, or the only one; '' without rows."""
    names = dict.fromkeys(row.benchmark for row in rows)
    return AVERAGE if AVERAGE in names else next(iter(names), "")


def by_place(model: Model) -> dict[tuple[str, Level], list[Answer]]:
    """Answers by benchmark and level, each level and all of them."""
    found: dict[tuple[str, Level], list[Answer]] = defaultdict(list)
    for answer in model.answers:
        found[answer.benchmark, ALL].append(answer)
        if answer.level is not None:
            found[answer.benchmark, answer.level].append(answer)
    return found


def std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (ddof 1); None for a sample of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _by_run(answers: Sequence[Answer]) -> list[float]:
    """Accuracy of each run in percent."""
    runs: dict[int, list[bool]] = defaultdict(list)
    for answer in answers:
        runs[answer.run].append(answer.correct)
    return [100 * float(np.mean(runs[run])) for run in sorted(runs)]


def _row(name: str, benchmark: str, level: Level, answers: Sequence[Answer]) -> Row:
    runs, tokens = _by_run(answers), [answer.tokens for answer in answers]
    return Row(
        model=name,
        benchmark=benchmark,
        level=level,
        n=len({answer.id for answer in answers}),
        accuracy=float(np.mean(runs)),
        accuracy_std=std(runs),
        length_mean=float(np.mean(tokens)),
        length_std=std(tokens),
        truncated=float(np.mean([answer.truncated for answer in answers])),
        extracted=float(np.mean([answer.extracted for answer in answers])),
    )


def table(model: Model) -> list[Row]:
    """A row per benchmark and level that has questions, and for several benchmarks those of their average."""
    groups, names = by_place(model), benchmarks([model])
    places = [(name, level) for name in names for level in PLACES if (name, level) in groups]
    found = {place: _row(model.name, *place, groups[place]) for place in places}
    rows = list(found.values())
    if len(names) > 1:
        for level in PLACES:
            there = [name for name in names if (name, level) in found]
            if there:
                parts = [found[name, level] for name in there]
                rows.append(_average(parts, [groups[name, level] for name in there]))
    return rows


def _average(parts: Sequence[Row], answers: Sequence[Sequence[Answer]]) -> Row:
    runs = np.mean([_by_run(group) for group in answers], axis=0)
    return replace(
        parts[0],
        benchmark=AVERAGE,
        n=sum(part.n for part in parts),
        accuracy=float(np.mean([part.accuracy for part in parts])),
        accuracy_std=std(list(runs)),
        length_mean=float(np.mean([part.length_mean for part in parts])),
        length_std=std([answer.tokens for group in answers for answer in group]),
        truncated=float(np.mean([part.truncated for part in parts])),
        extracted=float(np.mean([part.extracted for part in parts])),
    )


def by_question(answers: Sequence[Answer]) -> dict[str, float]:
    """Percent of the runs that got each question right."""
    found: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        found[answer.id].append(answer.correct)
    return {name: 100 * float(np.mean(hits)) for name, hits in found.items()}


def _differences(model: Sequence[Answer], base: Sequence[Answer]) -> Any:
    """Model minus base for each question, an array."""
    ours, theirs = by_question(model), by_question(base)
    if ours.keys() != theirs.keys():
        raise ValueError(f"evaluations of different questions: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    return np.array([ours[name] - theirs[name] for name in sorted(ours)])


def interval(samples: Sequence[np.ndarray]) -> tuple[float | None, float | None]:
    """Bootstrap interval (BCa; Efron 1987) of the mean of the samples' means; questions are resampled within each sample.

    What `scipy.stats.bootstrap` computes, in a hundredth of its time: a mean needs of each resample only how often every
    value was drawn, which is multinomial, and the values are few, since a question is right in 0 to n of n runs.
    """
    if any(len(sample) < 2 for sample in samples) or all(np.ptp(sample) == 0 for sample in samples):
        return None, None
    rng = np.random.default_rng(SEED)
    found = np.mean([_resampled(sample, rng) for sample in samples], axis=0)
    mean = float(np.mean([sample.mean() for sample in samples]))
    tie = 1e-9 * float(max(np.abs(sample).max() for sample in samples))  # equal means may differ by rounding
    below = (np.mean(found < mean - tie) + np.mean(found <= mean + tie)) / 2
    bias, edge = special.ndtri(below), special.ndtri((1 - CONFIDENCE) / 2)
    centred = [sample - sample.mean() for sample in samples]
    spread = sum(np.sum(part**2) / len(part) ** 2 for part in centred)
    skew = sum(np.sum(part**3) / len(part) ** 3 for part in centred) / (6 * spread**1.5)
    at = [special.ndtr(bias + (bias + z) / (1 - skew * (bias + z))) for z in (edge, -edge)]
    if not np.isfinite(at).all():
        return None, None
    low, high = (float(end) for end in np.quantile(found, at))
    return low, high


def _resampled(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of RESAMPLES resamples."""
    values, counts = np.unique(sample, return_counts=True)
    batch, shares = max(1, _CELLS // len(values)), counts / len(sample)
    sizes = [min(batch, RESAMPLES - begin) for begin in range(0, RESAMPLES, batch)]
    return np.concatenate([rng.multinomial(len(sample), shares, size) @ values / len(sample) for size in sizes])


def gains(models: Sequence[Model]) -> list[Gain]:
    """Gains of every other model over the base; none without a base. Paired: a question's own base accuracy is subtracted."""
    base = next((model for model in models if model.checkpoint == BASE), None)
    if base is None:
        return []
    theirs, names, found = by_place(base), benchmarks(models), []
    for model in models:
        if model is base:
            continue
        ours = by_place(model)
        pairs = {place: _differences(ours[place], theirs[place]) for place in theirs}
        for name in [*names, AVERAGE] if len(names) > 1 else names:
            for level in PLACES:
                samples = [d for (benchmark, at), d in pairs.items() if at == level and name in (benchmark, AVERAGE)]
                if samples:
                    value = float(np.mean([sample.mean() for sample in samples]))
                    found.append(Gain(model.name, name, level, value, *interval(samples)))
    return found

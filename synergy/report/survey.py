"""One evaluation read once: its judged answers, and what is counted in the responses, whose texts are not kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synergy.report import form, results
from synergy.report.measure import ALL, PLACES
from synergy.report.results import Answer
from synergy.report.tables import Table

WORDS = ("wait", "check", "mistake", "alternative", "however")
"""Those of the paper's Table 5."""
QUANTILES = (0.1, 0.5, 0.9, 0.99)
POOLED = "all benchmarks"


@dataclass(frozen=True)
class Survey:
    """responses: benchmark -> how many. words: (benchmark, word) -> how often a word in a response begins with it, upper or
    lower case, so that "Alternatively" counts; the paper leaves unstated how it counted. judged: benchmark -> answers that a
    judge model read."""

    answers: tuple[Answer, ...]
    responses: Mapping[str, int]
    words: Mapping[tuple[str, str], int]
    judged: Mapping[str, int]

    def rate(self, word: str, benchmark: str) -> float:
        """Occurrences per 1,000 responses, of one benchmark or of all together (``POOLED``)."""
        there = [name for name in self.responses if benchmark in (POOLED, name)]
        return 1000 * sum(self.words.get((name, word), 0) for name in there) / sum(self.responses[n] for n in there)


def read(file: Path) -> Survey:
    """One pass over ``results.jsonl``; a line is in memory at a time. Rows without ``judged`` were judged by rules alone."""
    answers: list[Answer] = []
    responses: Counter[str] = Counter()
    words: Counter[tuple[str, str]] = Counter()
    judged: Counter[str] = Counter()
    for row in results.rows(file):
        answer = results.answer(row)
        answers.append(answer)
        responses[answer.benchmark] += 1
        judged[answer.benchmark] += bool(row.get("judged", False))
        text = (row["response"] or "").lower()
        for word in WORDS:
            words[answer.benchmark, word] += begins(text, word)
    return Survey(tuple(answers), responses, words, judged)


def begins(text: str, word: str) -> int:
    """How many words of a text begin with this one. By plain search, ten times as fast as a pattern on gigabytes."""
    count, at = 0, text.find(word)
    while at >= 0:
        count += at == 0 or not text[at - 1].isalnum()
        at = text.find(word, at + len(word))
    return count


def shares(found: Mapping[str, Sequence[Survey]]) -> Table:
    """model -> surveys of its trainings: responses of each benchmark, and the shares that something is the matter with."""
    lines = []
    for model, surveys in found.items():
        for benchmark in surveys[0].responses:
            there = [a for survey in surveys for a in survey.answers if a.benchmark == benchmark]
            counts = (
                sum(a.truncated for a in there),
                sum(not a.extracted for a in there),
                sum(survey.judged.get(benchmark, 0) for survey in surveys),
            )
            lines.append((model, benchmark, form.count(len(there)), *(form.share(n / len(there)) for n in counts)))
    return Table(("model", "benchmark", "responses", "cut off", "no answer found", "judged"), tuple(lines), words=2)


def lengths(surveys: Sequence[Survey], level: int | str) -> np.ndarray:
    """Tokens of all responses at a level, in order, benchmarks and trainings together."""
    found = [a.tokens for survey in surveys for a in survey.answers if level in (ALL, a.level)]
    return np.sort(np.array(found, dtype=np.int64))


def quantiles(found: Mapping[str, Sequence[Survey]]) -> Table:
    """model -> surveys: the spread of response lengths on each level and on all of them."""
    lines = []
    for model, surveys in found.items():
        for level in PLACES:
            there = lengths(surveys, level)
            if there.size:
                cells = (form.tokens(float(value)) for value in np.quantile(there, QUANTILES))
                lines.append((model, str(level), form.count(there.size), *cells))
    names = ("median" if q == 0.5 else f"{q:.0%}" for q in QUANTILES)
    return Table(("model", "level", "responses", *names), tuple(lines), words=2)

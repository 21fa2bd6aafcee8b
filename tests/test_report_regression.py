"""Regression to the mean, and the laws of what measures and reads the answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_report import Runs, page, row_of

from synergy.driver.plan import Plan
from synergy.report import build, measure, regression, results, style
from synergy.report.results import Answer, Model

PASSES = {1: (16, 12), 2: (8, 8), 3: (5, 5), 4: (2, 4), 5: (0, 1)}


def shifted(root: Path) -> Plan:
    """On fresh runs the base model is right in one of two runs, whatever the level; the other model always."""
    sizes, runs = {"One": 2, "Two": 2}, Runs(root, "sft")
    runs.benchmarks(sizes, lambda q, i: PASSES[int(q[1])][i])
    runs.evaluate("base", sizes, lambda b, level, q, i, run: (run == 0, 7))
    runs.evaluate("sft", sizes, lambda b, level, q, i, run: (True, 7))
    return runs.plan()


def test_regression_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 50)
    place = build.write(shifted(tmp_path))
    html, markdown, told = page(place)
    row = row_of(told, "regression", benchmark="One", level=1)
    assert row["n"] == 2 and row["defining"]["value"] == pytest.approx(100 * 28 / 32)
    assert row["fresh"] == {"value": 50.0, "low": None, "high": None}, "both questions alike"
    assert (
        row["change"]["value"] == pytest.approx(50 - 87.5)
        and -50 <= row["change"]["low"] < row["change"]["high"] <= -25
    )
    assert row["naive_gain"] == {"base": pytest.approx(-37.5), "sft": pytest.approx(12.5)}
    hard = row_of(told, "regression", benchmark="average", level=5)
    assert hard["n"] == 4 and hard["defining"]["value"] == pytest.approx(100 / 32)
    assert row_of(told, "gains", benchmark="average", level=5)["gain"] == pytest.approx(50)
    every = row_of(told, "regression", benchmark="Two", level="all")
    assert every["defining"]["value"] == pytest.approx(100 * 61 / 160)
    for text in (html, markdown):
        assert "87.5 % right on level 1 and 3.1 % on level 5" in text and "−37.5 and +46.9 points" in text
        assert "+12.5 / +50.0" in text and "eval-base" in text
    assert (place.parent / "figures" / "regression.png").exists()


def test_benchmarks_without_passes_tell_nothing(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "base")
    runs.benchmarks({"One": 2})
    runs.evaluate("base", {"One": 2}, lambda b, level, q, i, run: (True, 7))
    assert regression.shifts(results.models(runs.plan())) == []
    assert regression.passes(tmp_path / "stages" / "prepare-benchmarks" / "output") == {}


def test_levels_by_luck_alone_shift_and_fresh_runs_do_not(tmp_path: Path) -> None:
    """All questions are equally hard: what their levels show on the runs that made them is chance, and it is gone."""
    from synergy.data.records import level

    rng = np.random.default_rng(0)
    sizes, runs = {"One": 400}, Runs(tmp_path, "base")
    counts = rng.binomial(16, 0.4, 400 * 5)
    out = runs.add("benchmarks", "prepare", {"base": "base"}, {})
    lines = [f"{i}\t{i}\t\t7\t{level(int(k))}\t{k}" for i, k in enumerate(counts)]
    (out / "One.tsv").write_text("\n".join(["index\tid\tquestion\tanswer\tdifficulty_level\tpasses", *lines]) + "\n")
    (out / "benchmarks.json").write_text(json.dumps([{"name": "One", "tsv": "One.tsv"}]))
    runs.evaluate("base", sizes, lambda b, lv, q, i, run: (True, 1))
    file = results.results(runs.steps[-1])
    shape = next(results.chosen(file, lambda row: True))
    with file.open("w") as stream:
        for run in range(4):
            for i, k in enumerate(counts):
                row = {**shape, "run": run, "id": str(i), "level": level(int(k)), "correct": bool(rng.random() < 0.4)}
                stream.write(json.dumps(row) + "\n")
    by_level = {shift.level: shift for shift in regression.shifts(results.models(runs.plan()))}
    assert by_level[2].change.high is not None and by_level[2].change.high < -5, "the easiest ones there are: worse"
    assert by_level[4].change.low is not None and by_level[4].change.low > 5
    for shift in by_level.values():
        if shift.n > 30:
            assert shift.fresh.value == pytest.approx(40, abs=6)
    low, high = by_level["all"].change.low, by_level["all"].change.high
    assert low is not None and high is not None and low < 0 < high


ANSWERS = st.lists(
    st.tuples(st.sampled_from(["One", "Two"]), st.integers(0, 2), st.integers(0, 5), st.booleans(), st.integers(0, 90)),
    min_size=1,
    max_size=60,
    unique_by=lambda answer: answer[:3],
)


@given(ANSWERS)
@settings(max_examples=60, deadline=None)
def test_rows_are_what_they_are_defined_to_be(drawn: list[tuple[str, int, int, bool, int]]) -> None:
    answers = tuple(
        Answer(name, run, f"q{i}", i % 3 + 1 if i else None, right, tokens, tokens > 80, right)
        for name, run, i, right, tokens in drawn
    )
    model = Model("m", "m", None, answers)  # type: ignore[arg-type]
    for row in measure.table(model) if len({a.benchmark for a in answers}) == 1 else []:
        mine = [a for a in answers if row.level in (measure.ALL, a.level)]
        by_run = defaultdict(list)
        for a in mine:
            by_run[a.run].append(100.0 * a.correct)
        runs = [sum(hits) / len(hits) for hits in by_run.values()]
        assert row.n == len({a.id for a in mine}) and row.accuracy == pytest.approx(sum(runs) / len(runs))
        assert row.accuracy_std == (pytest.approx(np.std(runs, ddof=1)) if len(runs) > 1 else None)
        assert row.length_mean == pytest.approx(sum(a.tokens for a in mine) / len(mine))
        assert row.truncated == pytest.approx(sum(a.truncated for a in mine) / len(mine))


ROWS = st.fixed_dictionaries(
    {
        "benchmark": st.text(),
        "run": st.integers(0, 3),
        "id": st.text(),
        "level": st.none() | st.integers(1, 5),
        "correct": st.booleans(),
        "answer": st.none() | st.text(),
        "tokens": st.integers(0, 99),
        "finish_reason": st.sampled_from(["stop", "length"]),
        "response": st.text() | st.just('", "response": "\\'),
    }
)


@given(st.lists(ROWS, max_size=6), st.booleans(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_rows_are_read_alike_without_their_responses(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, Any]], ascii_only: bool, order: Any
) -> None:
    """Whatever a response or an answer holds, and wherever the response stands in its row."""
    file = tmp_path_factory.mktemp("rows") / "results.jsonl"
    with file.open("w", encoding="utf-8", newline="") as stream:
        for row in found:
            names = [*row]
            order.shuffle(names)
            stream.write(json.dumps({name: row[name] for name in names}, ensure_ascii=ascii_only) + "\n")
    assert list(results.rows(file)) == found == list(results.chosen(file, lambda row: True))
    assert list(results.answers(file)) == [
        Answer(
            r["benchmark"], r["run"], r["id"], r["level"], r["correct"], r["tokens"], r["finish_reason"] == "length",
            r["answer"] not in (None, ""),
        )
        for r in found
    ]  # fmt: skip


def scipys(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """The library's bootstrap of the same statistic, from the questions themselves."""

    def statistic(*parts: np.ndarray, axis: int) -> Any:
        return np.mean([part.mean(axis=axis) for part in parts], axis=0)

    found = stats.bootstrap(
        tuple(samples), statistic, n_resamples=measure.RESAMPLES, method="BCa", vectorized=True, batch=2000,
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


@pytest.mark.parametrize(("sizes", "runs"), [((30,), 4), ((200,), 1), ((60, 25), 4), ((300, 100, 40), 16)])
def test_intervals_are_those_of_scipy(sizes: Sequence[int], runs: int) -> None:
    """Paired differences of two models' means over n runs, one or several benchmarks, also where they are skewed."""
    rng = np.random.default_rng(sum(sizes))
    samples = [100 * (rng.binomial(runs, 0.15, n) - rng.binomial(runs, 0.05, n)) / runs for n in sizes]
    low, high = measure.interval(samples)
    assert low is not None and high is not None
    assert (low, high) == pytest.approx(scipys(samples), abs=0.05 * (high - low))


def test_intervals_hold_what_they_promise() -> None:
    """Of 95 % intervals over questions, with 4 runs each, about 95 % hold the true gain (here 10 points)."""
    rng, held, rounds = np.random.default_rng(2), 0, 200
    for _ in range(rounds):
        chance = rng.beta(1, 1, 150) * 0.8
        ours, theirs = rng.binomial(4, chance + 0.1), rng.binomial(4, chance)
        low, high = measure.interval([100 * (ours - theirs) / 4])
        held += low is not None and high is not None and low <= 10 <= high
    assert 0.90 <= held / rounds <= 0.99

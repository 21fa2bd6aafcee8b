"""The report: its numbers against ones computed by hand, its page against hostile responses, its files, its errors."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy.driver.ledger import Entry
from synergy.driver.plan import Plan, Step, Workspace
from synergy.errors import UserError
from synergy.report import build, examples, form, history, measure, paper, results, style, tables
from synergy.stages import Stage

T0 = 1_780_000_000.0
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 20).decode()
SETTINGS = {
    "runs": 2,
    "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 99, "seed": 0},
    "instruction": "Think.",
}
Verdict = Callable[[str, int, str, int, int], tuple[bool, int]]
"""(benchmark, level, question id, number of the question in its level, run) -> correct, tokens."""


class Runs:
    """A run directory with finished stages that were never run."""

    def __init__(self, root: Path, recipe: str) -> None:
        self.space, self.recipe, self.clock = Workspace(root), recipe, T0
        self.steps: list[Step] = []

    def add(self, name: str, kind: str, inputs: Mapping[str, str], figures: Mapping[str, Any], seconds: float = 10.0,
            settings: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
        """A finished stage; returns its output folder."""
        key = f"{len(self.steps):02d}" + "ab" * 31
        folder = self.space.root / "stages" / f"{kind}-{name}"
        (folder / "output").mkdir(parents=True)
        places = {step.stage.name: step.folder / "output" for step in self.steps}
        entry = Entry(
            key, kind, name, f"stages/{folder.name}/output", "d", "f", {"packages": {"frame": "1.2"}}, {}, dict(figures),
            self.clock, seconds, 1_500_000_000,
        )  # fmt: skip
        stage = Stage(name, kind, settings or {}, inputs, f"why {name}")
        read = {role: places.get(source, self.space.root / source) for role, source in inputs.items()}
        self.steps.append(Step(stage, key, {}, folder, read, "reuse", "finished", entry))
        self.clock += seconds + 0.5
        return folder / "output"

    def benchmarks(self, sizes: Mapping[str, int], passes: Callable[[str, int], int] | None = None) -> None:
        """One table per benchmark with the same number of questions on each level; passes: by question id and number."""
        out = self.add("benchmarks", "prepare", {"base": "base"}, {})
        (out / "benchmarks.json").write_text(json.dumps([{"name": n, "tsv": f"{n}.tsv"} for n in sizes]))
        for name, size in sizes.items():
            lines = ["index\tid\timage\tquestion\tA\tanswer\tdifficulty_level\tpasses"]
            ids = [f"q{level}-{i}" for level in measure.LEVELS for i in range(size)]
            told = [str(passes(q, int(q[3:]))) if passes else "" for q in ids]
            rows = enumerate(zip(ids, told, strict=True))
            lines += [f"{i}\t{q}\t{PIXEL}\tHow much is {q} <b>?\tone\t7\t{q[1]}\t{p}" for i, (q, p) in rows]
            (out / f"{name}.tsv").write_text("\n".join(lines) + "\n")

    def evaluate(
        self, model: str, sizes: Mapping[str, int], verdict: Verdict, runs: int = 2, response: str = "So 7."
    ) -> None:
        settings = {**SETTINGS, "runs": runs, "instruction": None if model == "base" else "Think."}
        inputs = {"model": model, "benchmarks": "benchmarks"}
        out = self.add(f"eval-{model}", "evaluate", inputs, {}, settings=settings)
        with (out / "results.jsonl").open("w") as stream:
            for name, size in sizes.items():
                for run in range(runs):
                    for level in measure.LEVELS:
                        for i in range(size):
                            right, tokens = verdict(name, level, f"q{level}-{i}", i, run)
                            row = {
                                "benchmark": name, "run": run, "id": f"q{level}-{i}", "index": f"{i}", "level": level,
                                "correct": right, "answer": "7" if right else None, "rule": "boxed/string",
                                "tokens": tokens, "finish_reason": "stop" if right else "length", "response": response,
                            }  # fmt: skip
                            stream.write(json.dumps(row) + "\n")

    def train(self, name: str, kind: str, model: str, rows: Sequence[Mapping[str, Any]], **figures: Any) -> None:
        out = self.add(name, kind, {"base": "base", "model": model}, {"metrics": "attempt-1/metrics.jsonl", **figures})
        (out.parent / "attempt-1").mkdir()
        text = "".join(json.dumps({"step": i + 1, **row}) + "\n" for i, row in enumerate(rows))
        (out.parent / "attempt-1" / "metrics.jsonl").write_text(text)

    def plan(self) -> Plan:
        return Plan(self.recipe, self.steps, self.space, {})


def by_hand(root: Path) -> Plan:
    """Base: question 0 of each level right in both runs, question 1 in run 0, the others never. RL: one more question of the
    first benchmark right in both runs, and on the second all wrong."""
    sizes, runs = {"One": 4, "Two": 2}, Runs(root, "rl")
    runs.benchmarks(sizes)
    runs.evaluate("base", sizes, lambda b, level, q, i, run: (i == 0 or (i == 1 and run == 0), 10 + run))
    runs.train("rl", "rl", "base", [{"reward": 0.1 * i, "length": 30.0, "entropy": 1.0} for i in range(4)], steps=4)
    runs.evaluate("rl", sizes, lambda b, level, q, i, run: (b == "One" and i in (0, 1, 2), 40 * level))
    return runs.plan()


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    """Drawing takes most of the time, and pixels are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 50)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.write(by_hand(tmp_path_factory.mktemp("runs")))


def alone(root: Path) -> Plan:
    """The base model on one benchmark, one run: one question of three right."""
    sizes, runs = {"One": 3}, Runs(root, "base")
    runs.benchmarks(sizes)
    runs.evaluate("base", sizes, lambda b, level, q, i, run: (i < 1, 7), runs=1)
    return runs.plan()


def page(place: Path) -> tuple[str, str, dict[str, Any]]:
    folder = place.parent
    return place.read_text(), (folder / "report.md").read_text(), json.loads((folder / "report.json").read_text())


def row_of(told: dict[str, Any], table: str, **where: Any) -> dict[str, Any]:
    (found,) = (row for row in told[table] if all(row[k] == v for k, v in where.items()))
    return dict(found)


def test_numbers_by_hand(written: Path) -> None:
    html, markdown, told = page(written)
    assert told["schema"] == 1 and told["recipe"] == "rl"
    row = row_of(told, "rows", model="base", benchmark="One", level=3)
    # Runs: 2 of 4 and 1 of 4; lengths 10 four times and 11 four times.
    assert row["n"] == 4 and row["accuracy"] == pytest.approx(37.5)
    assert row["accuracy_std"] == pytest.approx(np.std([50, 25], ddof=1))
    assert row["length_mean"] == pytest.approx(10.5) and row["length_std"] == pytest.approx((8 * 0.25 / 7) ** 0.5)
    assert row["truncated"] == pytest.approx(5 / 8) and row["extracted"] == pytest.approx(3 / 8)
    whole = row_of(told, "rows", model="rl", benchmark="One", level="all")
    assert whole["n"] == 20 and whole["accuracy"] == pytest.approx(75) and whole["length_mean"] == pytest.approx(120)
    mean = row_of(told, "rows", model="base", benchmark="average", level=1)
    # The second benchmark: runs 2 of 2 and 1 of 2. The runs' means over benchmarks: (50 + 100) / 2 and (25 + 50) / 2.
    assert mean["n"] == 6 and mean["accuracy"] == pytest.approx((37.5 + 75) / 2)
    assert mean["accuracy_std"] == pytest.approx(np.std([75, 37.5], ddof=1))
    gain = row_of(told, "gains", model="rl", benchmark="One", level=2)
    # By question: 0, +50, +100, 0.
    assert gain["gain"] == pytest.approx(37.5) and 0 <= gain["ci_low"] < 37.5 < gain["ci_high"] <= 100
    average = row_of(told, "gains", model="rl", benchmark="average", level="all")
    assert average["gain"] == pytest.approx((37.5 - 75) / 2) and average["ci_low"] < -18.75 < average["ci_high"]
    assert not [g for g in told["gains"] if g["model"] == "base"]
    for text in (html, markdown):
        assert "37.5 ± 17.7" in text and "fresh runs" in text and "eval-base" in text
        assert "temperature 0.6" in text and "frame" in text and "Think." in text
    assert "−18.8 points over the base model" in html and "cannot tell" not in html


def test_interval_matches_theory_and_says_when_it_knows_nothing() -> None:
    rng = np.random.default_rng(1)
    sample = rng.normal(3, 10, 400)
    low, high = measure.interval([sample])
    assert low is not None and high is not None
    error = sample.std(ddof=1) / 20
    assert low == pytest.approx(sample.mean() - 1.96 * error, abs=0.1)
    assert high == pytest.approx(sample.mean() + 1.96 * error, abs=0.1)
    first, second = rng.normal(3, 10, 400), rng.normal(5, 10, 100)
    low, high = measure.interval([first, second])
    assert low is not None and high is not None
    error = ((first.std(ddof=1) / 20) ** 2 + (second.std(ddof=1) / 10) ** 2) ** 0.5 / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert measure.interval([np.array([5.0])]) == (None, None)
    assert measure.interval([np.zeros(9)]) == (None, None)


def test_page_is_self_contained_and_figures_are_there(written: Path) -> None:
    html, markdown, told = page(written)
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.DOTALL)
    assert re.findall(r"<script[^>]*>", markup) == ['<script type="application/json">', "<script>"]
    assert not re.findall(r"""(?:src|href|action|srcset|poster|data)\s*=\s*["']?+(?!data:image/)\S""", markup)
    assert "url(" not in html and "@import" not in html and "http:" not in html and "https:" not in html
    assert "default-src 'none'" in html
    figures = {file.stem: file.read_bytes() for file in (written.parent / "figures").iterdir()}
    assert set(figures) == {"gains", "accuracy", "length", "training", "timeline"}
    for name, data in figures.items():
        assert data.startswith(b"\x89PNG") and base64.b64encode(data).decode() in html
        assert f"figures/{name}.png" in markdown
    assert written.parent.parent.name == "reports" and written.parent.name.startswith("rl-")
    assert [file.name for file in written.parent.parent.iterdir()] == [written.parent.name]
    assert str(written.parent.parent.parent) not in html + markdown + json.dumps(told)


def test_writing_again_replaces_the_report(tmp_path: Path) -> None:
    todo = alone(tmp_path)
    place = build.write(todo)
    (place.parent / "stale").write_text("")
    assert build.write(todo) == place and not (place.parent / "stale").exists()


def test_hostile_responses_stay_text(tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script><img src=http://x.example/a.png onerror=alert(2)>{{ recipe }}"
    sizes, runs = {"One|\n<i>": 2}, Runs(tmp_path, "sft")
    runs.benchmarks({})
    bench = runs.steps[0].folder / "output"
    (bench / "benchmarks.json").write_text(json.dumps([{"name": "One|\n<i>", "tsv": "one.tsv"}]))
    ids = [f"q{level}-{i}" for level in measure.LEVELS for i in range(2)]
    lines = [f"{q}\t{q}\tjavascript:alert(3)\t<svg onload=alert(4)>\t7" for q in ids]
    (bench / "one.tsv").write_text("index\tid\timage\tquestion\tanswer\n" + "\n".join(lines) + "\n")
    runs.evaluate("base", sizes, lambda b, level, q, i, run: (i == 0, 5), response=evil)
    runs.evaluate("sft", sizes, lambda b, level, q, i, run: (i == 1, 9), response=evil + "x" * 5000)
    html, markdown, _ = page(build.write(runs.plan()))
    for bad in ("<script>alert", "<img src=http", "<svg onload", "javascript:", "<i>"):
        assert bad not in html
    assert html.count("<script") == 2 and html.count("</script") == 2
    assert "&lt;script&gt;alert(1)" in html and "{{ recipe }}" in html and "characters left out" in html
    assert "<i>" not in markdown and r"One\| \<i\>" in markdown


def test_one_model_alone(tmp_path: Path) -> None:
    place = build.write(alone(tmp_path))
    html, markdown, told = page(place)
    assert told["gains"] == [] and told["baseline"] == ""
    assert row_of(told, "rows", level=1)["accuracy_std"] is None
    assert {row["benchmark"] for row in told["rows"]} == {"One"}
    assert {file.stem for file in (place.parent / "figures").iterdir()} == {"accuracy", "length", "timeline"}
    assert "base answers 33.3 % right on One" in markdown and "Beside the paper" not in html


def test_several_models(tmp_path: Path) -> None:
    """The last model bears the recipe's name, an earlier one that of its stage; both stand beside the paper's numbers."""
    sizes, runs = {"One": 3}, Runs(tmp_path, "progressive")
    runs.benchmarks(sizes)
    for model, right in (("base", 1), ("sft", 2), ("rl-3", 3)):
        runs.evaluate(model, sizes, lambda b, level, q, i, run, right=right: (i < right, 7))  # type: ignore[misc]
    html, markdown, told = page(build.write(runs.plan()))
    assert [model["model"] for model in told["models"]] == ["base", "sft", "progressive"]
    assert [model["checkpoint"] for model in told["models"]] == ["base", "sft", "rl-3"]
    assert row_of(told, "gains", model="progressive", level="all")["gain"] == pytest.approx(200 / 3)
    assert "progressive (stage rl-3)" in html
    assert "| level 5 | +33.3 | +13.8 | +66.7 | +7.7 |" in markdown and "not comparable in size" in html


def test_levels_without_questions_and_a_training_that_diverged(tmp_path: Path) -> None:
    sizes, runs = {"One": 2, "Two": 2}, Runs(tmp_path, "sft")
    runs.benchmarks(sizes)
    runs.evaluate("base", sizes, lambda b, level, q, i, run: (i == 0, 7))
    runs.train("sft", "sft", "base", [{"loss": float("nan")}, {"loss": float("inf")}], steps=2, loss_last=float("nan"))
    runs.evaluate("sft", sizes, lambda b, level, q, i, run: (True, 7))
    for step in runs.steps:
        file = results.results(step)
        if file.exists():
            kept = [
                row
                for row in results.rows(file)
                if row["level"] != 3 and (row["level"] != 4 or row["benchmark"] == "One")
            ]
            lost = [{**row, "level": None} if row["level"] == 5 else row for row in kept]
            file.write_text("".join(json.dumps(row) + "\n" for row in lost))
    _, markdown, told = page(build.write(runs.plan()))
    assert {row["level"] for row in told["rows"] if row["benchmark"] == "One"} == {1, 2, 4, "all"}
    assert row_of(told, "rows", model="sft", benchmark="Two", level="all")["n"] == 6
    assert (
        row_of(told, "gains", benchmark="average", level=4)["gain"]
        == row_of(told, "gains", benchmark="One", level=4)["gain"]
    )
    assert row_of(told, "stages", stage="sft")["figures"]["loss_last"] is None
    assert "| Two | 2 | 2 | 0 | 0 | 0 | 6 |" in markdown


def test_paper_averages() -> None:
    assert paper.gains()["sft", 1] == pytest.approx((-11.1 - 8.6 - 7.6 - 11.3 - 15.0) / 5)
    assert paper.gains()["rl", "all"] == pytest.approx(55.1 - 50.3)
    assert paper.gains()["two_stage", "all"] == pytest.approx(51.4 - 50.3)
    assert not paper.knows("base") and not paper.knows("mine")


def test_unfinished_stages_are_named(tmp_path: Path) -> None:
    todo = by_hand(tmp_path)
    steps = [
        replace(s, action="run", why="not made yet", entry=None) if s.stage.name == "rl" else s for s in todo.steps
    ]
    with pytest.raises(UserError, match=r"rl \(not made yet\).*synergy run recipe=rl"):
        build.write(replace(todo, steps=steps))
    assert not (tmp_path / "reports").exists()


def test_verb_names_the_command_that_runs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synergy import report
    from synergy.driver import plan

    todo = alone(tmp_path)
    steps = [replace(s, action="run", why="not made yet") if s.stage.name == "eval-base" else s for s in todo.steps]
    monkeypatch.setattr(plan, "of_config", lambda cfg: replace(todo, steps=steps))
    monkeypatch.setattr("sys.argv", ["synergy report", "recipe=base", f"run.dir={tmp_path}"])
    assert report.main() == 2
    assert (
        f"eval-base (not made yet). Run them with: python -m synergy.run recipe=base run.dir={tmp_path}"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(plan, "of_config", lambda cfg: todo)
    monkeypatch.setattr(build, "write", lambda todo: Path(f"{todo.recipe}/report.html"))
    assert report.main() == 0
    assert "report.html" in capsys.readouterr().out


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    todo = by_hand(tmp_path)
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(UserError, match=r"can't be written.*run\.dir"):
        build.write(todo)


def test_timeline_cuts_pauses_and_marks_what_was_reused(tmp_path: Path) -> None:
    todo = by_hand(tmp_path)  # benchmarks, eval-base, rl, eval-rl
    later = [
        replace(step, entry=replace(step.entry, started=step.entry.started + 5000)) for step in todo.steps if step.entry
    ]
    spans = history.timeline(replace(todo, steps=todo.steps[:2] + later[2:]))
    assert [span.begin for span in spans] == pytest.approx([0, 10.5, 20.5, 31])
    assert [span.reused for span in spans] == [True, True, False, False]
    assert not any(span.reused for span in history.timeline(todo))
    told = tables.stages(spans)
    assert [line[2] for line in told.rows] == ["reused", "reused", "made", "made"]


def test_curves_follow_each_other_and_may_be_missing(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "progressive")
    runs.train("sft-1", "sft", "base", [{"loss": 2.0}, {"eval_loss": 1.5}, {"loss": 1.0}], steps=3)
    runs.train("rl-1", "rl", "sft-1", [{"reward": 0.1}] * 4, steps=4)
    runs.add("sft-2", "sft", {"model": "rl-1"}, {"skipped": "no SFT rows"})
    runs.train("rl-2", "rl", "sft-2", [{"reward": 0.3}] * 2, steps=2)
    found = history.curves(runs.plan(), "rl")
    assert history.starts(found) == [0, 4, 6]
    (sft,) = history.curves(runs.plan(), "sft")
    assert sft.points("loss") == ([1, 3], [2.0, 1.0]) and sft.points("eval_loss") == ([2], [1.5])
    (tmp_path / "stages" / "rl-rl-2" / "attempt-1" / "metrics.jsonl").unlink()
    assert history.starts(history.curves(runs.plan(), "rl")) == [0, 4, 6]


def test_examples_show_both_directions(tmp_path: Path) -> None:
    todo = by_hand(tmp_path)
    chosen = examples.choose(results.models(todo))
    assert [(c.level, c.won, c.lost, c.n) for c in chosen] == [(level, 1, 2, 6) for level in measure.LEVELS]
    won, lost = chosen[0].examples
    assert (won.benchmark, won.id, won.why) == ("One", "q1-2", "won")
    assert (lost.benchmark, lost.id, lost.why) == ("Two", "q1-0", "lost")
    assert [(r.model, r.correct) for r in won.responses] == [("base", False), ("rl", True)]
    assert (
        won.question == "How much is q1-2 <b>?\nA. one"
        and won.gold == "7"
        and won.image.startswith("data:image/png;base64,")
    )
    assert examples.data_uri(json.dumps([PIXEL])) == won.image
    assert examples.data_uri(base64.b64encode(b"<svg>").decode()) == "" and examples.data_uri("[") == ""


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (form.percent(41.25, 0.84), "41.2 ± 0.8"),
        (form.percent(None), "–"),
        (form.gain(-0.04), "0.0"),
        (form.gain(5.1, -2.0, 8.26), "+5.1 [−2.0, +8.3]"),
        (form.tokens(1234.4, 567.8), "1,234 ± 568"),
        (form.tokens(8.04, None), "8.0"),
        (form.share(0.0004), "<0.1 %"),
        (form.seconds(75.4), "1 min 15 s"),
        (form.seconds(59.6), "1 min 00 s"),
        (form.seconds(7190), "2 h 00 min"),
        (form.memory(0), "–"),
        (form.memory(6_140_000_000), "6.1 GB"),
    ],
)
def test_how_numbers_are_written(written: str, wanted: str) -> None:
    assert written == wanted

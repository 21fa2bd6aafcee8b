"""Reports side by side: differences by hand, the settings that differ, and reports that can't be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import call
from test_explorer import island
from test_report import SETTINGS, Runs, page, row_of
from test_sweep import SIZES, Jobs, coarse, right  # noqa: F401, a fixture for all tests here

from synergy import report
from synergy.errors import UserError
from synergy.report import build, compare, compare_page, stored, sweep_page


def made(root: Path, recipe: str, hits: int, tokens: int, sizes: dict[str, int] = SIZES, runs: int = 2) -> Path:
    """A report of a recipe whose model has the first ``hits`` questions of each level right; the base has the first one."""
    told = Runs(root, recipe)
    told.benchmarks(sizes)
    told.evaluate("base", sizes, right(1, 10), runs)
    told.train("model", "rl", "base", [{"reward": 0.5}], steps=1)
    told.evaluate("model", sizes, right(hits, tokens), runs)
    return build.write(told.plan()).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("two")
    return made(root / "a", "sft", 2, 30), made(root / "b", "rl", 3, 50)


def test_differences_by_hand(two: tuple[Path, Path]) -> None:
    html, markdown, told = page(compare_page.write([str(two[0]), str(two[1] / "report.json")]))
    final = row_of(told, "rows", models=["sft", "rl"], benchmark="One", level=3)
    # 2 and 3 of 4 right, the base 1 of 4.
    assert final["values"]["A"] == {"accuracy": 50.0, "gain": 25.0, "length": 30.0}
    assert final["values"]["B"] == {"accuracy": 75.0, "gain": 50.0, "length": 50.0}
    assert final["differences"] == {"B": {"accuracy": 25.0, "gain": 25.0, "length": 20.0}}
    base = row_of(told, "rows", models=["base", "base"], benchmark="average", level="all")
    assert base["values"]["A"]["gain"] is None and base["differences"]["B"] == {
        "accuracy": 0.0, "gain": None, "length": 0.0,
    }  # fmt: skip
    # Averages: (50 + 100) / 2 and (75 + 100) / 2.
    assert "sft / rl, average: +12.5 points from A to B (75.0 to 87.5 % right), 50.0 tokens instead of 30.0" in html
    assert "| sft / rl | B − A | +12.5 | +12.5 | +12.5 | +12.5 | +12.5 | +12.5 |" in markdown
    assert "| sft / rl | B − A | +20.0 |" in markdown and "has no interval" in html
    assert [one["of"] for one in told["reports"]] == ["sft", "rl"] and told["settings_that_differ"] == {}
    assert "No setting that these reports tell differs" in markdown
    names = [model["name"] for model in island(html)["models"]]
    assert names == ["base (A)", "base (B)", "sft (A)", "rl (B)"]
    assert [model["fill"] for model in island(html)["models"]] == [0, 1, 0, 1]
    assert str(two[0].parent.parent.parent) not in html + markdown + json.dumps(told)
    assert {file.stem for file in next(two[0].parent.glob("compare-*/figures")).iterdir()} == {
        "gains", "accuracy", "length",
    }  # fmt: skip


def test_the_comparison_lies_beside_the_first_and_is_no_report_itself(two: tuple[Path, Path]) -> None:
    place = compare_page.write([str(path) for path in two])
    assert place.parent.parent == two[0].parent and place.parent.name.startswith("compare-")
    assert compare_page.write([str(path) for path in two]) == place, "the same reports, the same place"
    # A run directory means its one report, however many comparisons lie beside it.
    assert stored.find(str(two[0].parent.parent)) == two[0] / "report.json"
    with pytest.raises(UserError, match="is a comparison itself"):
        compare_page.write([str(place.parent), str(two[1])])


def test_settings_that_differ_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "a", "rl", 2, 30)
    monkeypatch.setitem(SETTINGS, "sampling", {**SETTINGS["sampling"], "temperature": 1.0, "seed": 7})  # type: ignore[dict-item]
    other = made(tmp_path / "b", "rl", 2, 30, {"One": 4, "Two": 3}, runs=3)
    _, markdown, told = page(compare_page.write([str(one), str(other)]))
    assert told["settings_that_differ"] == {
        "runs": ["2", "3"],
        "sampling: temperature": ["0.6", "1.0"],
        "sampling: seed": ["0", "7"],
        "questions of average": ["30", "35"],
        "questions of Two": ["10", "15"],
    }
    assert "| sampling: temperature | 0.6 | 1.0 |" in markdown
    assert markdown.index("What differs") < markdown.index("B − A")


def test_settings_of_stages_and_versions(tmp_path: Path) -> None:
    def told(letter: str, settings: dict[str, list[str]]) -> stored.Told:
        return stored.Told(letter, tmp_path, "x", "", None, {}, {}, {}, settings)

    first = {"base checkpoint": ["ab"], "sft: seed": ["0", "1"], "rl: seed": ["0"], "version of verl": ["0.9.1"]}
    other = {"base checkpoint": ["cd"], "sft: seed": ["1", "0"], "sft: lr": ["1e-4"], "only: there": ["1"]}
    assert compare.differing([told("A", first), told("B", other)]) == [
        ("base checkpoint", ["ab", "cd"]),
        ("version of verl", ["0.9.1", "–"]),
        ("sft: lr", ["–", "1e-4"]),
    ]


def test_a_sweep_against_a_recipe(tmp_path: Path, two: tuple[Path, Path]) -> None:
    jobs = Jobs(tmp_path, right(1, 10))
    jobs.add("sft", 0, right(2, 30))
    jobs.add("sft", 1, right(3, 34))
    whole = sweep_page.write(jobs.found).parent
    html, markdown, told = page(compare_page.write([str(whole), *map(str, two)]))
    assert row_of(told, "rows", models=["sft", "sft", None], benchmark="One", level=1)["differences"] == {
        "B": {"accuracy": -12.5, "gain": -12.5, "length": -2.0},
        "C": {"accuracy": None, "gain": None, "length": None},
    }
    assert "between runs or seeds" in html and "not compared: rl (C)" in markdown
    assert "| sft | A | 81.2 ± 8.8 |" in markdown and "C − A" in markdown, "base is in all three"


def damaged(text: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(text) and None


def changed(**what: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **what})) and None


ROW = {
    "model": "base", "benchmark": "One", "level": 1, "n": 4, "accuracy": 1.0, "accuracy_std": None, "length_mean": 1.0,
    "length_std": None, "truncated": 0.0, "extracted": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (damaged('{"schema": 1, "rows": ['), r"report\.json is damaged, no JSON"),
        (damaged('{"schema": 1, "rows": [NaN]}'), "NaN is no JSON number"),
        (damaged("[" * 100_000), r"report\.json is damaged"),
        (damaged("\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "{"), "is damaged"),
        (damaged("[]"), "is no report: it has no schema"),
        (changed(schema=2), "has schema 2, this version reads 1"),
        (changed(rows=None), "is no report as this version writes it"),
        (changed(rows=[{**ROW, "accuracy": "<b>"}]), "'<b>' is no number"),
        (changed(rows=[{**ROW, "level": 9}]), "9 is no level"),
        (changed(rows=[{**ROW, "level": [1]}]), "is no level"),
        (changed(models=[]), "is no report as this version writes it"),
        (changed(settings={"runs": 4}), "is no report as this version writes it"),
        (changed(rows=[{**ROW, "benchmark": "Other", "level": "all"}]), r"no rows in common: A .* on One, Two.* on Other"),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_read(
    two: tuple[Path, Path], tmp_path: Path, harm: Callable[[Path], None], told: str
) -> None:
    file = tmp_path / "report.json"
    file.write_text((two[1] / "report.json").read_text())
    harm(file)
    with pytest.raises(UserError, match=told):
        compare_page.write([str(two[0]), str(file)])
    assert not list(tmp_path.glob("compare-*"))


def test_words_that_are_no_report(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(str, two)
    (tmp_path / "reports" / "x-1").mkdir(parents=True)
    for words, told in (
        ([a], "one report alone"),
        ([a, a], "the same report twice"),
        ([a, str(tmp_path / "gone")], "no such report: .*gone.*synergy report recipe=NAME"),
        ([a, str(tmp_path)], "no report in"),
        ([a, str(two[1].parent.parent.parent)], "no report in"),
    ):
        with pytest.raises(UserError, match=told):
            compare_page.write(words)
    for name in ("x-1", "y-2"):
        (tmp_path / "reports" / name).mkdir(exist_ok=True)
        (tmp_path / "reports" / name / "report.json").write_text((two[1] / "report.json").read_text())
    with pytest.raises(UserError, match=r"holds 2 reports; name one of them, newest first: .*y-2, .*x-1"):
        compare_page.write([b, str(tmp_path)])


def test_hostile_names_stay_text(two: tuple[Path, Path], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>|<img src=x onerror=alert(2)>"
    for name, path in zip("ab", two, strict=True):
        (tmp_path / name).mkdir()
        text = (path / "report.json").read_text().replace('"One"', json.dumps(evil))
        told = {**json.loads(text), "recipe": evil, "settings": {evil: [name + evil]}}
        (tmp_path / name / "report.json").write_text(json.dumps(told))
    html, markdown, _ = page(compare_page.write([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert html.count("<script") == 2 and "<img src=x" not in html and "<script>alert" not in html
    assert r"\<script\>" in markdown and not re.search(r"(?<!\\)<", markdown)


def test_from_the_command_line(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["synergy report", *words])
        code = report.main()
        told = capsys.readouterr()
        return code, told.out + told.err

    code, out = run(*map(str, two))
    assert code == 0 and out.startswith("comparison: ") and Path(out.split(": ")[1].strip()).is_file()
    assert run("nowhere", str(two[0]))[0] == 2
    code, out = run(str(two[0]), str(two[1]), "recipe=rl")
    assert code == 2 and out.startswith("synergy: either reports to compare") and "recipe=rl" in out
    odd = tmp_path / "lr=1"
    odd.mkdir()
    (odd / "report.json").write_text((two[1] / "report.json").read_text())
    assert run(str(two[0]), str(odd))[0] == 0, "a path may have a = in it"


def test_help_tells_both_uses() -> None:
    done = call("report", "--help")
    assert done.returncode == 0 and "synergy report A B" in done.stdout and "recipe=" in done.stdout

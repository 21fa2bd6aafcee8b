"""Levels of benchmarks by one's own base model: tagged through an evaluation of 16 runs, then used in place of the data's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import published
import pytest
from published import LEVEL, RATE
from test_strategies import config, plan
from test_tagged import rows_of

from synergy import lab
from synergy.data import levels, prepare
from synergy.driver import externals
from synergy.errors import UserError
from synergy.report import results
from synergy.stages import Stage

SIZES = {"train": 8, "val": 4, "bench": 6}


def prepared(tmp: Path, stage: Stage, **places: Any) -> Path:
    """The tables of a ``benchmarks`` stage."""
    out = tmp / f"out-{len(list(tmp.glob('out-*')))}"
    out.mkdir(parents=True)
    spec = {**stage.settings, "base": str(lab.BASE), "tagged": {}, "levels": {}, "inputs_source": "", **places}
    prepare.benchmarks(spec, out)
    return out


def answers(file: Path, passes: dict[str, dict[str, int]], runs: int = 16) -> str:
    """results.jsonl of an evaluation in which each question had so many right answers."""
    lines = [
        json.dumps({"benchmark": name, "run": run, "id": question, "correct": run < count, "level": None})
        for name, counts in passes.items()
        for question, count in counts.items()
        for run in range(runs)
    ]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def told(folder: Path, name: str) -> list[tuple[str, str, str]]:
    return [(row["id"], row["passes"], row["difficulty_level"]) for row in rows_of(folder / f"{name}.tsv")]


def ids(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return [row[0] for row in rows]


def small(recipe: str, *words: str) -> dict[str, Stage]:
    return plan(recipe, "data.sizes={train: 8, val: 4, bench: 6}", *words)


def test_tagging_asks_the_base_model_16_times_with_a_seed_of_its_own() -> None:
    benchmarks, evaluation, found = small("tag", "recipe.questions=benchmarks").values()
    assert [bench["levels"] for bench in benchmarks.settings["benchmarks"]] == ["none", "none"]
    assert (evaluation.settings["runs"], evaluation.settings["instruction"]) == (16, None)
    plain = small("base")["eval-base"].settings
    assert evaluation.settings["sampling"] == {**plain["sampling"], "seed": 1000} != plain["sampling"]
    assert found.inputs == {"base": "base", "answers": "eval-base", "benchmarks": "benchmarks"}
    with pytest.raises(UserError, match=r"recipe\.questions='x' is one of train, benchmarks"):
        small("tag", "recipe.questions=x")


def test_levels_go_from_an_evaluation_into_the_tables_of_the_next(tmp_path: Path) -> None:
    bare = prepared(tmp_path, small("tag", "recipe.questions=benchmarks")["benchmarks"])
    assert {row[1:] for row in told(bare, "DigitsOpen")} == {("", "")}, "what the data say is not asked for"
    counts = dict(zip(ids(told(bare, "DigitsOpen")), (16, 11, 7, 2, 0, 12), strict=True))
    (tmp_path / "levels").mkdir()
    figures = levels.of_benchmarks(
        {"answers": answers(tmp_path / "r.jsonl", {"DigitsOpen": counts})}, tmp_path / "levels"
    )
    assert figures == {"DigitsOpen": {"level_1": 2, "level_2": 1, "level_3": 1, "level_4": 1, "level_5": 1}}
    file = tmp_path / "levels/DigitsOpen.json"
    stage = small("base", f"evaluate.benchmarks.0.levels={file}")["benchmarks"]
    assert stage.inputs["levels_DigitsOpen"] == "levels-DigitsOpen" and str(file) not in json.dumps(stage.settings)
    made = prepared(tmp_path, stage, levels={"DigitsOpen": str(file)})
    assert told(made, "DigitsOpen") == [
        (name, str(passes), str(level))
        for (name, passes), level in zip(counts.items(), (1, 2, 3, 4, 5, 1), strict=True)
    ]
    usual = prepared(tmp_path, small("base")["benchmarks"])
    assert told(made, "DigitsChoice") == told(usual, "DigitsChoice"), "the other benchmark keeps its own"


def test_published_sets_are_tagged_without_their_columns(tmp_path: Path) -> None:
    published.write(tmp_path / "hub")
    bench = {"name": "T", "kind": "mmstar", "split": None, "level": "no_such", "passrate": "nor_this", "question": None}
    place = {"T": str(tmp_path / "hub/mmstar")}
    stage = Stage("benchmarks", "prepare", {"benchmarks": [{**bench, "levels": "none"}]})
    assert told(prepared(tmp_path, stage, tagged=place), "T") == [("0", "", ""), ("1", "", "")]
    (tmp_path / "l.json").write_text('{"0": 3, "1": 9}')
    given = Stage("benchmarks", "prepare", {"benchmarks": [{**bench, "levels": "given"}]})
    made = prepared(tmp_path, given, tagged=place, levels={"T": str(tmp_path / "l.json")})
    assert told(made, "T") == [("0", "3", "4"), ("1", "9", "2")]
    (tmp_path / "l.json").write_text('{"0": 3}')
    with pytest.raises(UserError, match=r"no passes of 1 questions \(first: '1'\)"):
        prepared(tmp_path, given, tagged=place, levels={"T": str(tmp_path / "l.json")})
    usual = Stage("benchmarks", "prepare", {"benchmarks": [{**bench, "level": LEVEL, "passrate": RATE}]})
    assert told(prepared(tmp_path, usual, tagged=place), "T") == [("0", "16", "1"), ("1", "16", "1")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 17}', '{"a": true}', '{"a": -1}', '{"a": "3"}'])
def test_a_file_that_holds_no_levels_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(UserError, match=r"l\.json: (can't be read|not a file of levels)"):
        levels.read(tmp_path / "l.json")


def test_fewer_runs_give_no_levels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of 15"):
        levels.of_benchmarks({"answers": answers(tmp_path / "r.jsonl", {"B": {"q": 3}}, runs=15)}, tmp_path)


def test_the_files_content_is_identity_and_a_missing_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "l.json"
    word = f"evaluate.benchmarks.0.levels={file}"
    with pytest.raises(UserError, match=r"DigitsOpen: levels=.*no such file; synergy tag"):
        externals.resolve(config("base", word), None, fetch=False)
    digests = set()
    for text in ('{"a": 1}', '{"a": 2}', '{"a": 1}'):
        file.write_text(text)
        digests.add(externals.resolve(config("base", word), None, fetch=False)["levels-DigitsOpen"].digest)
    assert len(digests) == 2


def test_tagging_ends_with_its_files_not_with_a_report(tmp_path: Path) -> None:
    from synergy.driver import plan as driver_plan

    todo = driver_plan.of_config(config("tag", "recipe.questions=benchmarks", f"run.dir={tmp_path}"))
    assert not results.evaluates(todo)
    assert results.evaluates(driver_plan.of_config(config("base", f"run.dir={tmp_path}")))

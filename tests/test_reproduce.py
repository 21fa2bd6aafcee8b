"""The paper's tables in our numbers: every one against values computed by hand, verdicts, files, and the plan behind them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import Runs

from synergy import paths
from synergy.compose import Task
from synergy.config import Config, Evaluate, Model, Sampling
from synergy.driver.plan import Plan
from synergy.report import dynamics, paper, reproduce_page, results, specs, style, survey
from synergy.report import reproduce as tables
from synergy.report.reproduce import Made

FIVE = ("MathVision", "MathVerse", "MathVista", "MMMU", "MMStar")
RIGHT = {
    "base": "43200 43211 44321 44210 44310",
    "ablation/sft_s1": "00000 00000 00000 00000 00000",
    "ablation/sft_s1_1": "43211 44211 44331 43221 44321",
    "sft": "32211 43321 33332 43222 33333",
    "ablation/rl_kl_0": "43210 44310 44420 44310 44400",
    "rl": "44310 44331 44441 43321 44431",
    "ablation/rl_without_easiest": "33210 44320 44430 44311 44420",
    "two_stage": "33211 43321 43432 43222 43432",
    "interleaved": "43310 44321 44440 44221 44421",
    "progressive": "44311 44431 44441 44321 44431",
    "data_mixing": "44444 44444 44444 44444 44444",
    "model_merging": "44310 44421 44432 44310 44431",
}
"""Of the four questions of each level, how many each model gets right on each benchmark, in every run."""
ACCURACY = {
    "base": (45, 55, 70, 55, 60, 57),
    "ablation/sft_s1": (0, 0, 0, 0, 0, 0),
    "ablation/sft_s1_1": (55, 60, 75, 60, 70, 64),
    "sft": (45, 65, 70, 65, 75, 64),
    "ablation/rl_kl_0": (50, 60, 70, 60, 60, 60),
    "rl": (60, 75, 85, 65, 80, 73),
    "ablation/rl_without_easiest": (45, 65, 75, 65, 70, 64),
    "two_stage": (50, 65, 80, 65, 80, 68),
    "interleaved": (55, 70, 80, 65, 75, 69),
    "progressive": (65, 80, 85, 70, 80, 76),
    "data_mixing": (100, 100, 100, 100, 100, 100),
    "model_merging": (60, 75, 85, 60, 80, 72),
}
"""In percent, on the five benchmarks and on average: the digits above, of a benchmark together, times five."""
GAINS = {
    "sft": (-15, -20, 5, 30, 35),
    "rl": (0, 5, 25, 40, 10),
    "two_stage": (-5, -15, 15, 30, 30),
    "interleaved": (0, 5, 20, 30, 5),
    "progressive": (0, 10, 30, 40, 15),
    "data_mixing": (0, 10, 40, 75, 90),
    "model_merging": (0, 10, 30, 25, 10),
}
"""Average gain per level: the digits of a level, over the five benchmarks together, minus base's 20, 18, 12, 5 and 2; each is
a fourth of one benchmark, so five points of the average."""
LENGTHS = {"rl": (500, 330, 220, 410, 180, 328), "data_mixing": (640, 380, 320, 420, 2000, 752)}
WORDS = {
    "base": ("I check it once.", (0, 1, 0, 0, 0)),
    "sft": ("Wait. Wait, a mistake? Alternatively, await; however, checking… However!", (2, 1, 1, 1, 2)),
    "rl": ("So 7.", (0, 0, 0, 0, 0)),
}
"""A response to every question, and how often words of it begin with those of Table 5. "await" does not."""
PAPER = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=24576)
SEVEN = Config(model=Model(path="Qwen/Qwen2.5-VL-7B-Instruct"), evaluate=Evaluate(sampling=PAPER))


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 50)
        yield


def evaluated(root: Path, cfg: Config = SEVEN, judged: bool = True) -> list[Made]:
    """Two runs of all models. One answer of each was read by a judge."""
    runs = Runs(root, "all")
    sizes = dict.fromkeys(FIVE, 4)
    runs.benchmarks(sizes)
    for recipe, digits in RIGHT.items():
        counts = dict(zip(FIVE, digits.split(), strict=True))
        tokens = dict(zip(FIVE, LENGTHS.get(recipe, (20,) * 5), strict=False))
        runs.evaluate(
            recipe.replace("/", "-"),
            sizes,
            lambda b, level, q, i, run, c=counts, t=tokens: (i < int(c[b][level - 1]), t[b] + 2 * run - 1),  # type: ignore[misc]
            response=WORDS.get(recipe, ("", ()))[0],
        )
        if judged:
            file = results.results(runs.steps[-1])
            first, *others = file.read_text().splitlines()
            file.write_text("\n".join([json.dumps({**json.loads(first), "judged": True}), *others]) + "\n")
    bench, base = runs.steps[0], runs.steps[1]
    made = []
    for recipe, step in zip(RIGHT, runs.steps[1:], strict=True):
        steps = [bench, base] if step is base else [bench, base, step]
        task = Task(recipe, recipe, (f"recipe={recipe}",), cfg)
        made.append(tables.end(recipe, recipe, task, Plan(recipe, steps, runs.space, {})))
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = evaluated(tmp_path_factory.mktemp("runs"))
    return reproduce_page.write(list(specs.SPECS), made, {}).parent


def told(folder: Path, table: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(recipe, benchmark, item) -> cell, of report.json."""
    cells = json.loads((folder / "report.json").read_text())["tables"][table]["cells"]
    return {(cell["recipe"], cell["benchmark"], cell["item"]): cell for cell in cells}


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("table_1", ("base", "ablation/sft_s1", "ablation/sft_s1_1", "sft")),
        ("table_2", ("ablation/rl_kl_0", "rl")),
        ("table_3", ("rl", "ablation/rl_without_easiest")),
        ("table_6", ("sft", "rl", "two_stage", "interleaved", "progressive", "data_mixing", "model_merging")),
    ],
)
def test_accuracies_by_hand(written: Path, table: str, rows: tuple[str, ...]) -> None:
    cells = told(written, table)
    assert list(cells) == [(recipe, place, "all") for recipe in rows for place in (*FIVE, "average")]
    for recipe in rows:
        for place, wanted in zip((*FIVE, "average"), ACCURACY[recipe], strict=True):
            assert cells[recipe, place, "all"]["ours"] == pytest.approx(wanted), (recipe, place)


def test_the_paper_s_own_numbers_are_those_of_its_tables(written: Path) -> None:
    """Read by eye from tables.csv."""
    one, two, three, six = (told(written, f"table_{n}") for n in (1, 2, 3, 6))
    assert [one[recipe, "MathVision", "all"]["paper"] for recipe in list(RIGHT)[:4]] == [26.1, 25.2, 30.6, 29.7]
    assert [two[recipe, "average", "all"]["paper"] for recipe in ("ablation/rl_kl_0", "rl")] == [52.9, 55.1]
    assert three["ablation/rl_without_easiest", "MMMU", "all"]["paper"] == 54.0
    assert [six[recipe, "MMStar", "all"]["paper"] for recipe in GAINS] == [60.8, 66.5, 60.9, 64.3, 65.9, 62.7, 66.2]
    assert six["rl", "average", "all"]["difference"] == pytest.approx(73 - 55.1)


def test_gains_per_level_by_hand(written: Path) -> None:
    cells = told(written, "figure_1")
    assert len(cells) == 7 * 6 * 5
    for recipe, wanted in GAINS.items():
        assert [cells[recipe, "average", str(n)]["ours"] for n in range(1, 6)] == pytest.approx(list(wanted)), recipe
    # MathVista of SFT: 33332 against 44321, in fourths. The paper's bars there: -7.6, 0.0, 11.0, 16.7, 11.9.
    vista = [cells["sft", "MathVista", str(n)] for n in range(1, 6)]
    assert [cell["ours"] for cell in vista] == pytest.approx([-25, -25, 0, 25, 25])
    assert [cell["paper"] for cell in vista] == [-7.6, 0.0, 11.0, 16.7, 11.9]
    assert cells["sft", "average", "1"]["paper"] == pytest.approx((-11.1 - 8.6 - 7.6 - 11.3 - 15.0) / 5)


def test_lengths_by_hand(written: Path) -> None:
    cells = told(written, "table_7")
    for recipe, wanted in LENGTHS.items():
        assert [cells[recipe, place, "all"]["ours"] for place in (*FIVE, "average")] == pytest.approx(list(wanted))
    assert [cells["data_mixing", place, "all"]["paper"] for place in (*FIVE, "average")] == [
        637,
        381,
        324,
        424,
        1999,
        753,
    ]
    # Every question of a benchmark has the same mean length, so the interval is a point: 500 is not 514.
    assert cells["rl", "MathVision", "all"]["verdict"] == "below"
    assert cells["data_mixing", "MathVision", "all"]["verdict"] == "above"


def test_words_by_hand(written: Path) -> None:
    cells = told(written, "table_5")
    for recipe, (_, wanted) in WORDS.items():
        for word, count in zip(survey.WORDS, wanted, strict=True):
            assert cells[recipe, "MathVision", word]["ours"] == 1000 * count, (recipe, word)
    assert cells["sft", "MathVision", "wait"]["paper"] == 249091 and cells["rl", "MathVision", "mistake"]["paper"] == 7
    assert {cell["verdict"] for cell in cells.values()} == {"not comparable: the paper prints totals"}
    assert cells["sft", "MathVision", "wait"]["difference"] is None


def test_verdicts_and_intervals_by_hand(written: Path) -> None:
    cells = told(written, "table_1") | told(written, "table_6")
    # All 20 questions wrong, or right: no spread, and a point far from the paper's 25.2 and 29.2.
    assert {cells["ablation/sft_s1", place, "all"]["verdict"] for place in FIVE} == {"below"}
    assert cells["data_mixing", "MathVision", "all"]["verdict"] == "above"
    # 9 of 20: standard error sqrt(0.45 * 0.55 / 19), the interval reaches from 22.6 to 67.4 and holds 26.1.
    cell, reach = cells["base", "MathVision", "all"], 1.959964 * 100 * (0.45 * 0.55 / 19) ** 0.5
    assert (cell["low"], cell["high"]) == pytest.approx((45 - reach, 45 + reach)) and cell["verdict"] == "within"
    # The average of five, each with an error of its own.
    errors = [n * (1 - n) / 19 for n in (0.45, 0.55, 0.70, 0.55, 0.60)]
    cell = cells["base", "average", "all"]
    assert cell["high"] - cell["ours"] == pytest.approx(1.959964 * 100 * sum(errors) ** 0.5 / 5)


def test_shares_by_hand(written: Path) -> None:
    """The fixture cuts off what is wrong, and finds no answer there; one answer of MathVision was judged."""
    markdown = (written / "report.md").read_text()
    assert "| base | MathVision | 40 | 55.0 % | 55.0 % | 2.5 % |" in markdown
    assert "| data\\_mixing | MMStar | 40 | 0.0 % | 0.0 % | 0.0 % |" in markdown
    assert "| rl | all | 200 | 181 | 330 | 499 | 501 |" in markdown  # twenty each of 179, 181, ..., 499, 501 tokens


def test_files_and_page(written: Path) -> None:
    document = json.loads((written / "report.json").read_text())
    assert written.name.startswith("reproduce-") and document["reproduces"] == list(specs.SPECS)
    assert {file.name for file in (written / "tables").iterdir()} == {
        f"{spec.name}.{kind}" for spec in specs.SPECS.values() for kind in ("csv", "tex", "md")
    }
    with (written / "tables" / "table_6.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7 * 6 and rows[0]["ours"] == "45.0" and rows[0]["paper"] == "29.7"
    assert float(rows[0]["difference"]) == pytest.approx(45 - 29.7)
    html = (written / "report.html").read_text()
    assert "default-src 'none'" in html and html.count("<script") == 2, "the chart's numbers, and what draws them"
    markup = re.sub(r"(?s)<script.*?</script>", "", html)
    assert not re.findall(r"""(?:src|href|action|srcset|poster|data)\s*=\s*["']?+(?!data:image/)\S""", markup)
    assert str(written.parent.parent) not in html
    figures = {file.stem for file in (written / "figures").iterdir()}
    assert figures == {spec.name for spec in specs.SPECS.values()} | {"lengths"}
    assert "| sft | 1 | 64.0 \\[" in (written / "report.md").read_text()


@pytest.mark.parametrize(
    ("cfg", "why"),
    [
        (Config(model=Model(path="lab")), "another scale"),
        (replace(SEVEN, model=Model(path="Qwen/Qwen2.5-VL-3B-Instruct")), "another model"),
        (replace(SEVEN, evaluate=Evaluate(sampling=PAPER, runs=2)), "fewer runs"),
        (replace(SEVEN, data=replace(SEVEN.data, limit=100)), "other data"),
        (replace(SEVEN, evaluate=Evaluate(sampling=replace(PAPER, temperature=1.0))), "other sampling (temperature)"),
    ],
)
def test_what_is_not_comparable_says_why_and_is_shown(tmp_path: Path, cfg: Config, why: str) -> None:
    cells = tables.cells(specs.SPECS["table=2"], tables.entries(evaluated(tmp_path, cfg)))
    assert {cell.verdict for cell in cells} == {f"not comparable: {why}"}
    assert [cell.ours for cell in cells[-6:]] == pytest.approx(list(ACCURACY["rl"]))


def test_other_data_than_the_paper_s(tmp_path: Path) -> None:
    """34k questions of Eureka-Distill, a thousand of s1."""
    runs = Runs(tmp_path / "data", "rl")
    made = next(one for one in evaluated(tmp_path) if one.recipe == "rl")
    for recipe, records, why in (
        ("rl", 34_100, ""),
        ("rl", 2000, "not comparable: other data (2,000 training questions)"),
        ("ablation/sft_s1", 1000, ""),
        ("ablation/sft_s1", 34_000, "not comparable: other data (34,000 training questions)"),
    ):
        runs.steps = []
        runs.space = replace(runs.space, root=tmp_path / f"{recipe}-{records}")
        runs.add("data", "prepare", {}, {"train": {"records": records}})
        plan = replace(made.plan, steps=[*runs.steps, *made.plan.steps])
        (entry,) = tables.entries([replace(made, recipe=recipe, plan=plan)])
        assert entry.apart == why.removeprefix("not comparable: ")


def test_no_judge_and_other_benchmarks_are_not_comparable(tmp_path: Path) -> None:
    made = evaluated(tmp_path / "a", judged=False)
    cells = tables.cells(specs.SPECS["table=2"], tables.entries(made))
    assert {cell.verdict for cell in cells} == {"not comparable: no judge"}
    made = evaluated(tmp_path / "b")
    for one in made:
        for step in (one.base, one.step):
            file = results.results(step)
            kept = [row for row in results.rows(file) if row["benchmark"] in FIVE[:2]]
            file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = {
        cell.benchmark: cell
        for cell in tables.cells(specs.SPECS["table=2"], tables.entries(made))
        if cell.model == "rl"
    }
    assert found["MathVerse"].verdict in ("within", "above", "below")
    assert (found["MMMU"].ours, found["MMMU"].paper) == (None, 55.1)
    assert found["MMMU"].verdict == "not comparable: no such benchmark here"
    assert found["average"].ours == pytest.approx((60 + 75) / 2)
    assert found["average"].verdict == "not comparable: the average of other benchmarks"


def test_several_seeds_are_one_row_with_their_spread(tmp_path: Path) -> None:
    """Two trainings with 60 and 100 % of MathVision: 80 ± 28.3, which holds neither 29.0 nor, of 95 %, the paper's average."""
    made = {one.recipe: one for one in evaluated(tmp_path)}
    rl, other = made["rl"], replace(made["data_mixing"], name="rl", recipe="rl", base=made["rl"].base)
    (entry,) = tables.entries([rl, replace(other, plan=rl.plan)])
    cell = next(c for c in tables.cells(specs.SPECS["table=6"], [entry]) if c.benchmark == "MathVision")
    assert (cell.trainings, cell.ours) == (2, pytest.approx(80)) and cell.spread == pytest.approx(40 / 2**0.5)
    assert cell.verdict == "above"
    same = tables.entries([rl, rl])[0]
    assert same.strategy.trainings == 1, "what no seed decides counts once"


def test_a_recipe_that_was_not_run_is_told(tmp_path: Path) -> None:
    made = [one for one in evaluated(tmp_path) if "s1" not in one.recipe]
    folder = reproduce_page.write(["table=1", "table=7"], made, {"ablation/sft_s1": "no <b>file</b>"}).parent
    document = json.loads((folder / "report.json").read_text())
    assert document["tables"]["table_1"]["missing"] == {"ablation/sft_s1": "no <b>file</b>"}
    assert document["tables"]["table_7"]["missing"] == {}
    assert "ablation/sft_s1: not run: no &lt;b&gt;file" in (folder / "report.html").read_text()


def test_dynamics_over_rounds_and_seeds(tmp_path: Path) -> None:
    plans = []
    for seed, shift in enumerate((0.0, 0.2)):
        runs = Runs(tmp_path / str(seed), "progressive")
        runs.train("sft-1", "sft", "base", [{"loss": 1.0}, {"loss": 0.5}], steps=2)
        runs.train("rl-1", "rl", "sft-1", [{"reward": 0.1 + shift}, {"reward": 0.2 + shift}], steps=2)
        runs.add("sft-2", "sft", {"model": "rl-1"}, {"skipped": "no SFT rows"})
        runs.train("rl-2", "rl", "sft-2", [{"reward": 0.3 + shift}], steps=1)
        runs.train("sft-3", "sft", "rl-2", [{"loss": 0.4}], steps=1)
        runs.train("rl-3", "rl", "sft-3", [{"reward": 0.4 + shift}, {"reward": float("nan")}], steps=2)
        plans.append(runs.plan())
    found = dynamics.line(plans, "rl", "reward")
    assert found is not None and found.steps.tolist() == [1, 2, 3, 4], "NaN is no point"
    assert found.mean.tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert (found.high - found.low).tolist() == pytest.approx([0.2] * 4)
    assert found.switches == [1, 4], "the second round of SFT had nothing to train"
    loss = dynamics.line(plans, "sft", "loss")
    assert loss is not None and loss.steps.tolist() == [1, 2, 3] and dynamics.line(plans, "rl", "entropy") is None
    assert dynamics.draw({"progressive": plans, "same": plans}, tmp_path / "dynamics.png") == tmp_path / "dynamics.png"
    assert dynamics.draw({"base": [Runs(tmp_path / "none", "base").plan()]}, tmp_path / "none.png") is None


@given(
    st.lists(st.sampled_from(["wait", "Wait,", "await", "alternatively", "x-wait", "mistakes", " ", "_", "é", "\n"]))
)
def test_words_are_counted_as_a_pattern_would(parts: list[str]) -> None:
    text = "".join(parts).lower()
    for word in survey.WORDS:
        assert survey.begins(text, word) == len(re.findall(rf"(?<![^\W_]){word}", text))


def test_responses_are_not_kept(tmp_path: Path) -> None:
    """A file of 200 MB is read in a tenth of that memory."""
    row = {"benchmark": "MathVision", "run": 0, "level": 1, "correct": True, "answer": "7", "tokens": 9,
           "finish_reason": "stop", "response": "Wait, " + "some more thought " * 60_000}  # fmt: skip
    file = tmp_path / "results.jsonl"
    with file.open("w") as stream:
        for number in range(200):
            stream.write(json.dumps({**row, "id": str(number)}) + "\n")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom synergy.report import survey\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\nfound = survey.read(Path(sys.argv[1]))\n"
        "print(found.words['MathVision', 'wait'], peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, cwd=paths.PACKAGE.parent, check=True
    )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 200 and kilobytes < 20_000


def test_names_of_the_paper_s_rows_are_in_its_data() -> None:
    known: Mapping[str, str] = specs.known()
    for spec in specs.SPECS.values():
        for row in spec.rows:
            assert known[row.theirs] == known[row.recipe] == row.recipe
            if spec.what == "words":
                assert (row.theirs, "wait") in paper.words()
            else:
                assert paper.value(row.theirs, "average", 1 if spec.by_level else "all", spec.what) is not None
            assert (paths.ROOT / "recipes" / "recipe" / f"{row.recipe}.yaml").is_file()

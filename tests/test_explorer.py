"""What the chart of a page is given: the report's own numbers, whatever models are called; and its script's parts, in Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import by_hand, page
from test_sweep import Jobs, right

from synergy.report import build, explorer, pages, paper, style, sweep_page
from synergy.report.measure import Gain, Row

HOSTILE = "</script><script>alert(1)</script><!--"


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 50)
        yield


def island(html: str) -> dict[str, Any]:
    """The JSON that stands in a page."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return dict(json.loads(text))


def row(model: str, benchmark: str, level: Any, accuracy: float = 50.0, std: float | None = None) -> Row:
    return Row(model, benchmark, level, 8, accuracy, std, 10.0, None, 0.0, 1.0)


def test_points_are_the_rows_and_gains_of_the_report(tmp_path: Path) -> None:
    html, _, told = page(build.write(by_hand(tmp_path)))
    data = island(html)
    assert data["benchmarks"] == ["average", "One", "Two"] and data["levels"] == ["1", "2", "3", "4", "5", "all"]
    assert [model["name"] for model in data["models"]] == ["base", "rl"]
    assert [model["colour"] for model in data["models"]] == [style.BASE_COLOUR, style.RECIPES["rl"]]
    found = {
        (data["models"][p["model"]]["name"], data["benchmarks"][p["benchmark"]], data["levels"][p["level"]]): p
        for p in data["points"]
    }
    assert len(found) == len(data["points"]) == len(told["rows"])
    gains = {(g["model"], g["benchmark"], str(g["level"])): g for g in told["gains"]}
    for one in told["rows"]:
        place = (one["model"], one["benchmark"], str(one["level"]))
        point = found[place]
        assert point["n"] == one["n"]
        assert point["accuracy"]["value"] == one["accuracy"] and point["length"]["value"] == one["length_mean"]
        assert point["accuracy"]["high"] == min(100, one["accuracy"] + one["accuracy_std"])
        assert point["accuracy"]["low"] == max(0, one["accuracy"] - one["accuracy_std"])
        assert ("gain" in point) == (place in gains)
        if place in gains:
            gain = gains[place]
            figure = point["gain"]
            assert (figure["value"], figure["low"], figure["high"]) == (gain["gain"], gain["ci_low"], gain["ci_high"])
            assert figure["paper"] == paper.value(one["model"], one["benchmark"], one["level"], "gain")
    assert found["base", "One", "3"]["accuracy"]["text"] == "accuracy 37.5 % ± 17.7 between runs"
    assert found["rl", "average", "all"]["gain"]["paper_text"] == "paper: +4.8"
    assert found["rl", "One", "all"]["gain"]["paper"] is None


def test_a_sweep_tells_the_spread_between_seeds(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, right(1, 10))
    jobs.add("sft", 0, right(2, 30))
    jobs.add("sft", 1, right(3, 34))
    data = island(sweep_page.write(jobs.found).read_text())
    whole = [p for p in data["points"] if p["model"] == 1 and p["benchmark"] == 0 and p["level"] == 5]
    assert [p["accuracy"]["text"] for p in whole] == ["accuracy 81.2 % ± 8.8 between seeds"]
    assert re.fullmatch(
        r"gain \+43\.8 points, 95 % interval \+\d\d\.\d to \+\d\d\.\d, ± 8\.8 between seeds", whole[0]["gain"]["text"]
    )
    assert whole[0]["accuracy"]["paper"] == 51.4


def test_names_cannot_break_out_of_the_page() -> None:
    rows = [row(HOSTILE, "a\u2028<b>&'\"", 1), row(HOSTILE, "a\u2028<b>&'\"", "all")]
    shown = {"explorer": explorer.data(rows, []), "title": HOSTILE, "created": "", "cost": "", "headline": [HOSTILE]}
    html = pages._render("page.html", True, shown)
    assert html.count("<script") == 2 and html.count("</script>") == 2 and "<script>alert" not in html
    data = island(html)
    assert data["models"][0]["name"] == HOSTILE and data["benchmarks"] == ["a\u2028<b>&'\""]


def test_the_one_script_is_allowed_by_its_hash() -> None:
    import base64
    import hashlib

    html = pages._render("page.html", True, {"title": "t", "created": "", "cost": "", "headline": []})
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "application/json" not in html


def test_what_is_not_known_is_none() -> None:
    rows = [row("mine", "One", 2, float("nan")), row("mine", "One", "all", 99.0, 4.0)]
    data = explorer.data(rows, [Gain("mine", "One", 2, 3.0, None, None)])
    json.dumps(data, allow_nan=False)
    assert data["levels"] == ["2", "all"] and data["paper"] == ""
    nan, whole = data["points"]
    assert nan["accuracy"]["value"] is None and nan["gain"]["text"] == "gain +3.0 points"
    assert (whole["accuracy"]["low"], whole["accuracy"]["high"]) == (95.0, 100.0)
    assert [metric["name"] for metric in explorer.data(rows, [])["metrics"]] == ["accuracy", "length"]


def in_node(file: str, expression: str) -> Any:
    """The value of a JavaScript expression about a script's parts (``it``)."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the path")
    code = f"const it = require({json.dumps(str(pages.STATIC / file))}); console.log(JSON.stringify({expression}))"
    ran = subprocess.run([node, "-e", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_axes_in_node() -> None:
    assert in_node("explorer.js", "it.ticks(0, 100, 5)") == [0, 20, 40, 60, 80, 100]
    assert in_node("explorer.js", "it.ticks(-11.2, 78.4, 5)") == [-20, 0, 20, 40, 60, 80]
    assert in_node("explorer.js", "it.ticks(0, 0.3, 5)") == [0, 0.1, 0.2, 0.3]
    assert in_node("explorer.js", "it.ticks(0, 0, 5).length") == 2
    figures = "[{value: 5, low: -2, high: 9, paper: 40}, {value: 7, low: null, high: null, paper: null}]"
    assert in_node("explorer.js", f"it.reach({figures}, 'gain', false)") == [-2, 9]
    assert in_node("explorer.js", f"it.reach({figures}, 'gain', true)") == [-2, 40]
    assert in_node("explorer.js", f"it.reach({figures}, 'accuracy', false)") == [-2, 100]
    assert in_node("explorer.js", "[[900, 80], [280, 82], [100, 300]].map(([w, g]) => it.columns(w, 6, g))") == [
        6,
        3,
        1,
    ]


@pytest.mark.parametrize(
    ("cells", "numeric", "down", "wanted"),
    [
        ("9.5 ± 1.0|10.0 ± 0.2|–|1,234 ± 5", True, False, "9.5 ± 1.0|10.0 ± 0.2|1,234 ± 5|–"),
        ("9.5|–|10.0", True, True, "10.0|9.5|–"),
        ("+4.8 [+1.0, +9.0]|−12.5 [−20.1, −3.0]|0.0", True, False, "−12.5 [−20.1, −3.0]|0.0|+4.8 [+1.0, +9.0]"),
        ("0.1 %|<0.1 %|0.0 %", True, False, "0.0 %|<0.1 %|0.1 %"),
        ("2 h 05 min|75 min|1 min 15 s|7.4 s", True, False, "7.4 s|1 min 15 s|75 min|2 h 05 min"),
        ("5.7 GB|512 MB|1.0 GB", True, True, "5.7 GB|1.0 GB|512 MB"),
        ("all|5|level 10|level 9", False, False, "5|all|level 9|level 10"),
    ],
)
def test_order_of_cells_in_node(cells: str, numeric: bool, down: bool, wanted: str) -> None:
    flags = f"{json.dumps(numeric)}, {json.dumps(down)}"
    got = in_node("tables.js", f"{json.dumps(cells.split('|'))}.sort((a, b) => it.compare(a, b, {flags}))")
    assert got == wanted.split("|")

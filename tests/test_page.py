"""Pages in a real browser: clicks, keys and pointer moves, compared with report.json; no request; narrow screens and print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from test_compare import made
from test_report import row_of
from test_sweep import Jobs, right

from synergy.report import compare_page, form, style, sweep_page

BARS = "[...document.querySelectorAll('.point')]"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tab: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sweep's page, a recipe's and a comparison's."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 50)
        jobs = Jobs(root, right(1, 10))
        jobs.add("rl", 0, right(1, 12))
        jobs.add("sft", 0, right(2, 30))
        jobs.add("sft", 1, right(3, 34))
        sweep, recipe = sweep_page.write(jobs.found), made(root / "a", "progressive", 2, 1234)
        return {
            "sweep": sweep,
            "recipe": recipe / "report.html",
            "comparison": compare_page.write([str(recipe), str(sweep.parent)]),
        }


@pytest.fixture
def sweep(tab: Browser, pages: dict[str, Path]) -> tuple[Browser, dict[str, Any]]:
    """The browser at the sweep's page, and its report.json."""
    tab.open(pages["sweep"])
    return tab, json.loads((pages["sweep"].parent / "report.json").read_text())


def bars(tab: Browser) -> list[dict[str, Any]]:
    """What is drawn, from left to right: model, level, value, and the bar's rectangle."""
    code = f"""{BARS}.map((one) => {{ const bar = one.querySelector(".bar");
        return {{model: one.dataset.model, level: one.dataset.level, value: Number(one.dataset.value),
                 colour: bar.getAttribute("fill"), height: bar.height.baseVal.value, top: bar.y.baseVal.value}} }})"""
    return list(tab.evaluate(code))


def test_switches_show_the_numbers_of_the_report(sweep: tuple[Browser, dict[str, Any]]) -> None:
    tab, told = sweep
    for metric, table, field in (
        ("accuracy", "rows", "accuracy"),
        ("gain", "gains", "gain"),
        ("length", "rows", "length_mean"),
    ):
        for benchmark in ("Two", "average"):
            tab.choose("[data-part=benchmark]", benchmark)
            tab.choose("[data-part=metric]", metric)
            wanted = [one for one in told[table] if one["benchmark"] == benchmark]
            shown = bars(tab)
            assert len(shown) == len(wanted) > 0
            for bar in shown:
                level = bar["level"] if bar["level"] == "all" else int(bar["level"])
                row = row_of(told, table, model=bar["model"], benchmark=benchmark, level=level)
                assert bar["value"] == row[field]
            tallest = max(shown, key=lambda bar: abs(bar["value"]))
            for bar in shown:  # heights are to scale
                assert bar["height"] == pytest.approx(
                    tallest["height"] * abs(bar["value"] / tallest["value"]), abs=0.01
                )
    assert tab.problems == []


def test_a_level_alone_and_strategies_switched_off(sweep: tuple[Browser, dict[str, Any]]) -> None:
    tab, told = sweep
    tab.choose("[data-part=metric]", "accuracy")
    assert [bar["model"] for bar in bars(tab)] == ["base", "sft", "rl"] * 6
    tab.click(".legend button:nth-child(2)")
    assert [bar["model"] for bar in bars(tab)] == ["base", "rl"] * 6
    assert tab.evaluate("document.querySelector('.legend button:nth-child(2)').ariaPressed") == "false"
    tab.choose("[data-part=level]", "level 4 only")
    assert [(bar["model"], bar["level"]) for bar in bars(tab)] == [("base", "4"), ("rl", "4")]
    tab.evaluate("document.querySelector('.legend button:nth-child(2)').focus()")
    tab.key("Enter", "\r")
    row = row_of(told, "rows", model="sft", benchmark="average", level=4)
    labels = tab.evaluate("[...document.querySelectorAll('.value')].map((one) => one.textContent)")
    assert len(labels) == 3 and labels[1] == form.percent(row["accuracy"])
    for number in (1, 2, 3):
        tab.click(f".legend button:nth-child({number})")
    assert bars(tab) == [] and "Nothing is chosen" in tab.evaluate("document.querySelector('svg').textContent")


def test_hover_and_keys_tell_all_that_is_known(sweep: tuple[Browser, dict[str, Any]]) -> None:
    tab, told = sweep
    tip = "document.querySelector('.tip')"
    assert tab.evaluate(f"{tip}.hidden") is True
    tab.hover('.point[data-model="sft"][data-level="all"]')
    lines = tab.evaluate(f"[...{tip}.children].map((one) => one.textContent)")
    gain = row_of(told, "gains", model="sft", benchmark="average", level="all")
    row = row_of(told, "rows", model="sft", benchmark="average", level="all")
    assert lines == [
        "sft, average, all levels",
        f"gain {form.signed(gain['gain'])} points, 95 % interval {form.signed(gain['ci_low'])} to "
        f"{form.signed(gain['ci_high'])}, ± {gain['gain_std']:.1f} between seeds (paper: +1.1)",
        f"accuracy {form.percent(row['accuracy'])} % ± {row['accuracy_std']:.1f} between seeds (paper: 51.4)",
        f"length {form.tokens(row['length_mean'])} tokens ± {row['length_std']:.1f} between seeds",
        f"{row['n']} questions",
    ]
    tab.hover("h1")
    assert tab.evaluate(f"{tip}.hidden") is True
    tab.evaluate(f"{BARS}[0].focus()")
    tab.key("ArrowRight")
    assert tab.evaluate("document.activeElement.dataset.model") == "rl"
    assert tab.evaluate(f"{tip}.textContent").startswith("rl, average, level 1")
    assert tab.evaluate("document.activeElement.ariaLabel").startswith("rl, average, level 1; gain 0.0 points")
    tab.key("End")
    assert tab.evaluate("document.activeElement.dataset.level") == "all"
    assert tab.evaluate("document.querySelectorAll('.point[tabindex=\"0\"]').length") == 1
    tab.key("Escape")
    assert tab.evaluate(f"{tip}.hidden") is True


def test_the_papers_values_are_hollow_markers(sweep: tuple[Browser, dict[str, Any]]) -> None:
    tab, _ = sweep
    markers = "document.querySelectorAll('path.paper').length"
    assert tab.evaluate(markers) == 0
    tab.click("[data-part=paper]")
    assert tab.evaluate(markers) == 12, "two recipes on five levels and all"
    assert "Not comparable in size" in tab.evaluate("document.querySelector('[data-part=note]').textContent")
    tab.choose("[data-part=metric]", "accuracy")
    assert tab.evaluate(markers) == 3, "of base, sft and rl on all questions"
    tab.choose("[data-part=benchmark]", "One")
    assert tab.evaluate(markers) == 0
    assert "no values" in tab.evaluate("document.querySelector('[data-part=note]').textContent")


def column(tab: Browser, number: int) -> list[str]:
    return list(
        tab.evaluate(f"[...document.querySelectorAll('tbody')[0].rows].map((one) => one.cells[{number}].textContent)")
    )


def test_tables_sort_by_click_and_key(sweep: tuple[Browser, dict[str, Any]]) -> None:
    tab, _ = sweep
    assert column(tab, 0) == ["base", "sft", "rl"]
    head = "table thead th:nth-child({})"
    tab.click(head.format(4) + " button")
    assert column(tab, 0) == ["sft", "rl", "base"], "gains as numbers, the base without one last"
    assert tab.evaluate(f"document.querySelector('{head.format(4)}').getAttribute('aria-sort')") == "descending"
    tab.key("Enter", "\r")  # the header has the focus
    assert column(tab, 0) == ["rl", "sft", "base"]
    assert tab.evaluate(f"document.querySelector('{head.format(4)}').getAttribute('aria-sort')") == "ascending"
    tab.click(head.format(3) + " button")
    assert column(tab, 2) == ["81.2 ± 8.8", "37.5", "37.5"] and column(tab, 0) == ["sft", "rl", "base"], (
        "ties keep order"
    )
    assert tab.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1
    tab.click(head.format(1) + " button")
    assert column(tab, 0) == ["base", "rl", "sft"]


@pytest.mark.parametrize("name", ["sweep", "recipe", "comparison"])
def test_narrow_screens_print_and_no_request(tab: Browser, pages: dict[str, Path], name: str) -> None:
    wide = """[...document.querySelectorAll("table, img, svg")].filter((one) => one.checkVisibility())
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 200))"""
    tab.requests.clear()
    for width in (320, 360, 400):
        tab.open(pages[name], width, 700, touch=True)
        assert tab.evaluate("innerWidth") == width
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
        assert tab.evaluate(f"{BARS}.length") > 0
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    tab.tap(".point")
    assert tab.evaluate("document.querySelector('.tip').hidden") is False
    tab.call("Emulation.setTouchEmulationEnabled", enabled=False)
    tab.open(pages[name], 700, 900)
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("document.querySelector('.switches').checkVisibility()") is False
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
    assert tab.evaluate(wide) == [], "nothing is cut off on paper"
    assert len(tab.pdf()) > 10_000
    tab.call("Emulation.setEmulatedMedia", media="")
    asked = [one for one in tab.requests if not one.startswith("data:")]
    assert set(asked) == {pages[name].resolve().as_uri()} and tab.problems == []


def test_without_scripts_figures_and_tables_stay(tab: Browser, pages: dict[str, Path]) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(pages["sweep"])
        shown = "['.explorer', 'table', 'figure img'].map((one) => document.querySelector(one).checkVisibility())"
        assert tab.evaluate(shown) == [False, True, True]
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_dark_mode_keeps_text_readable(tab: Browser, pages: dict[str, Path]) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.open(pages["sweep"])
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    text = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    tab.call("Emulation.setEmulatedMedia", features=[])
    dark, light = (sum(map(int, colour[4:-1].split(","))) for colour in (background, text))
    assert light - dark > 400

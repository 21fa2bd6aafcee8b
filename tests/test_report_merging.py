"""The merging part of a report: curves over the SFT ratio, the table and the heat map of the parents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import Runs, page

from synergy.driver.plan import Plan
from synergy.report import build, merging, results, style

SIZES = {"One": 2, "Two": 2}


def module(part: str, layer: int | None, **told: Any) -> dict[str, Any]:
    name = part if layer is None else f"{part} {layer}"
    known = {"delta_ratio": 31.62, "cosine": -0.25, "sign_conflict": 0.45, "changed_sft": 1.0, "changed_rl": 0.5}
    norms = {"parameters": 1234, "norm_base": 10.0, "delta_sft": 0.5, "delta_rl": 0.02}
    return {"module": name, "part": part, "layer": layer, **norms, **known, **told}


def merged(root: Path) -> Plan:
    """Parents and one merged model, evaluated; nothing was changed in the vision blocks."""
    runs = Runs(root, "model_merging")
    runs.benchmarks(SIZES)
    runs.evaluate("base", SIZES, lambda b, level, q, i, run: (i == 0, 10))
    for name in ("sft", "rl"):
        runs.add(name, "sft" if name == "sft" else "rl", {"base": "base", "model": "base"}, {"steps": 3})
    out = runs.add(
        "merge-0.25", "merge", {"base": "base", "sft": "sft", "rl": "rl"}, {"verified": 80, "changed_tensors": 48},
        settings={"ratio": 0.25, "method": "linear"},
    )  # fmt: skip
    frozen = {"delta_ratio": None, "cosine": None, "sign_conflict": None, "delta_sft": 0.0, "delta_rl": 0.0}
    rows = [module("vision block", None, **frozen), module("mlp", 0), module("mlp", 1), module("mlp", None)]
    (out / "parents.json").write_text(json.dumps({"schema": 1, "modules": [*rows, module("all", None)]}))
    for name, length in (("rl", 12), ("sft", 90), ("merge-0.25", 20)):
        runs.evaluate(name, SIZES, lambda b, level, q, i, run, length=length: (i == 0, length))  # type: ignore[misc]
    return runs.plan()


def test_ratios_run_from_the_rl_to_the_sft_model(tmp_path: Path) -> None:
    todo = merged(tmp_path)
    found = merging.ratios(todo, results.models(todo))
    assert found == {"rl": 0.0, "model_merging": 0.25, "sft": 1.0}, "the last one evaluated bears the recipe's name"


def test_the_report_shows_curves_table_and_heat_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 50)
    place = build.write(merged(tmp_path))
    html, markdown, told = page(place)
    figures = {file.stem for file in (place.parent / "figures").iterdir()}
    assert {"ratio_accuracy", "ratio_length", "parents"} <= figures
    for text in (html, markdown):
        assert "31.6" in text and "45.0 %" in text and "5.00 %" in text and "\u22120.25" in text
        assert "80 tensors verified" in text
    assert "figures/parents.png" in markdown
    merge = next(stage for stage in told["stages"] if stage["kind"] == "merge")
    assert merge["figures"]["verified"] == 80


def test_a_plan_without_merges_has_no_such_part(tmp_path: Path) -> None:
    assert merging.parents(Plan("rl", [], merged(tmp_path).space, {})) == []
    assert merging.table([]) is None and merging.heatmap([], tmp_path / "x.png") is None
    assert merging.sweep([], {"rl": 0.0}, "accuracy", "", tmp_path / "x.png") is None

"""How long SFT trains, and over how many processes its rows are tokenized."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sft_choose import finished

from synergy.stages import sft, sft_length


def seconds(rows: int, count: int) -> float:
    """One process is not handed anything."""
    handed = sft_length.WORKER_SECONDS * count if count > 1 else 0.0
    return handed + sft_length.ROW_SECONDS * rows / count


@given(st.integers(0, 200_000), st.integers(1, 128))
def test_no_other_number_of_processes_is_much_faster(rows: int, cores: int) -> None:
    chosen = sft_length.workers(rows, cores)
    assert 1 <= chosen <= min(cores, sft_length.MOST_WORKERS)
    least = min(seconds(rows, count) for count in range(1, min(cores, sft_length.MOST_WORKERS) + 1))
    assert seconds(rows, chosen) <= 1.2 * least


@pytest.mark.parametrize(("told", "found"), [({}, None), ({"preprocessing_num_workers": 3}, 3)])
def test_what_the_recipe_says_is_kept(tmp_path: Path, told: dict[str, int], found: int | None) -> None:
    job = finished(tmp_path)
    bare = {key: value for key, value in job.settings["config"].items() if key != sft_length.WORKERS}
    changed = replace(job.stage, settings={**job.settings, "config": {**bare, **told}})
    assert sft.native(replace(job, stage=changed)).get(sft_length.WORKERS) == found


def test_null_is_left_to_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    job = finished(tmp_path)
    rows = job.inputs["data"] / "sft/train.json"
    rows.write_text(json.dumps([{}] * 2000))
    changed = replace(
        job.stage, settings={**job.settings, "config": {**job.settings["config"], sft_length.WORKERS: None}}
    )
    assert sft.native(replace(job, stage=changed))[sft_length.WORKERS] == 7


@pytest.mark.parametrize(
    ("config", "steps", "seen"),
    [
        ({"num_train_epochs": 2.0}, 26, 200),
        ({}, 39, 300),
        ({"num_train_epochs": 2.0, "max_steps": 5}, 5, 40),
        ({"max_steps": -1}, 39, 300),
    ],
)
def test_steps_and_rows_of_a_hundred_in_batches_of_eight(config: dict[str, float], steps: int, seen: int) -> None:
    settings = {"config": config, "batch": 8}
    assert (sft_length.steps(settings, 100), sft_length.rows_seen(settings, 100)) == (steps, seen)

"""Every field of the config is identity (another value, another stage) or run-time (the same stages): told here for each, and
held to it. A new field fails until it has its line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any

import pytest
from test_strategies import config

from synergy.config import Config
from synergy.driver import plan
from synergy.errors import UserError

RECIPES = ("two_stage", "data_mixing", "model_merging")
"""Together they use every field but those of recipes, whose knobs are checked by their own dataclasses."""
IDENTITY: dict[str, Any] = {
    "seed": 5,
    "model.template": "qwen2_5_vl",
    "data.instruction": "Think.",
    "data.sizes": {"train": 64, "val": 10, "bench": 20},
    "data.limit": 32,
    "data.select": [{"shuffle": 0}],
    "data.seed": 5,
    "data.train": "val.jsonl",
    "data.validation": None,
    "lengths.rl": 48,
    "lengths.rl_after_sft": 48,
    "budget.rl_epochs": 2,
    "budget.rl_steps": 4,
    "sft.config": {"learning_rate": 3.0e-4},
    "sft.choose": "best",
    "sft.batch": 64,
    "rl.verl": {"actor_rollout_ref": {"rollout": {"n": 4}}},
    "rl.verl_add": {"reward": {"custom_reward_function": {"reward_kwargs": {"format_weight": 0.2}}}},
    "reward.path": "own",
    "merge.dtype": "bfloat16",
    "sample.n": 3,
    "sample.sampling.temperature": 0.5,
    "sample.sampling.top_p": 0.5,
    "sample.sampling.top_k": 5,
    "sample.sampling.max_tokens": 48,
    "sample.sampling.seed": 5,
    "sample.engine": {"dtype": "bfloat16"},
    "evaluate.benchmarks.name": "Other",
    "evaluate.benchmarks.records": "bench_choice.jsonl",
    "evaluate.benchmarks.kind": "choice",
    "evaluate.runs": 3,
    "evaluate.sampling.temperature": 0.5,
    "evaluate.sampling.top_p": 0.5,
    "evaluate.sampling.top_k": 5,
    "evaluate.sampling.max_tokens": 48,
    "evaluate.sampling.seed": 5,
    "evaluate.judge.endpoint": "http://127.0.0.1:1/v1",
    "evaluate.judge.model": "other",
    "evaluate.server": ["--quantization=fp8"],
}
"""Field -> a value unlike the tiny scale's."""
RUNTIME: dict[str, Any] = {
    "sft.gpus": None,
    "sft.env": {"X": "1"},
    "rl.env": {"X": "1"},
    "merge.options": ["--cuda"],
    "merge.env": {"X": "1"},
    "sample.replicas": 2,
    "sample.env": {"X": "1"},
    "evaluate.workers": 3,
    "evaluate.replicas": 2,
    "evaluate.judge.key_env": "KEY",
    "evaluate.judge.workers": 3,
    "evaluate.judge.timeout": 5.0,
    "evaluate.judge.retries": 5,
    "evaluate.port": 1234,
    "evaluate.startup_timeout": 5.0,
    "evaluate.env": {"X": "1"},
    "run.store": "memory://store",
    "cluster.kind": "ray",
    "cluster.address": "http://127.0.0.1:1",
    "cluster.python": "/usr/bin/python3",
    "cluster.workdir": "/",
    "cluster.env": {"X": "1"},
    "cluster.nodes": 2,
    "cluster.gpus": 2,
    "cluster.cpus": 2.0,
    "cluster.memory_gb": 1.0,
    "cluster.gpu_memory_gb": 80.0,
    "cluster.stages": {"evaluate": {"gpus": 2}},
    "cluster.image": "other",
    "cluster.claim": "other",
    "cluster.mount": "/other",
    "cluster.late": True,
    "cluster.wait_minutes": 1.0,
    "run.stall_minutes": 1.0,
    "run.stage_hours": 1.0,
    "run.retries": 5,
    "run.keep_going": True,
    "run.takeover": True,
    "run.warm": False,
    "run.keep": "final",
    "run.keep_work": True,
    "run.verify": False,
}
"""Field -> a value unlike the tiny scale's; no key changes by it."""
ELSEWHERE = {
    "recipe": "its knobs are fields of a dataclass of the strategy; tests/test_strategies.py",
    "rl.module": "a plug-in that starts verl, or verl itself: run-time, but of a name that must exist",
    "reward.name": "counts where reward.path is set; tests/test_own_reward.py",
    "model.path": "counts by the content behind it; tests/test_driver.py",
    "model.revision": "the same, of the hub; tests/test_cli.py",
    "evaluate.source": "counts by the content behind it, or as data.source=lab does; tests/test_distill.py",
    "data.source": "counts by the content behind it; tests/test_driver.py",
    **{
        f"data.{name}": "of data prepare, whose folder counts by its content; tests/test_data_prepare.py"
        for name in ("checks", "against", "workers")
    },
    **{
        f"data.sources.{name}": "as above"
        for name in ("name", "path", "revision", "subset", "split", "layout", "columns", "media", "into")
    },
    "frameworks.llamafactory": "counts by the versions installed there; tests/test_conformance.py",
    "frameworks.verl": "as above",
    "frameworks.mergekit": "as above",
    "frameworks.vllm": "as above",
    "frameworks.vlmevalkit": "as above",
    "run.dir": "where, not what",
    "evaluate.benchmarks.levels": "counts by the content of the file; tests/test_levels.py",
    **{
        f"evaluate.benchmarks.{name}": "of a tagged benchmark; tests/test_tagged.py"
        for name in ("tagged", "revision", "split", "level", "passrate", "question")
    },
}
"""Field -> why it can't be tried here, or where it is."""


JUDGED = {"evaluate.judge.endpoint": "http://127.0.0.1:2/v1"}
"""Without an endpoint the judge's other fields decide nothing."""


def given(path: str) -> dict[str, Any]:
    """Fields that must be set for this one to count."""
    if path.startswith("cluster.") and path != "cluster.kind":
        return {"cluster.kind": "ray"}
    return JUDGED if path.startswith("evaluate.judge.") and path not in JUDGED else {}


def fields(schema: type, at: str = "") -> set[str]:
    """Paths of all fields of a config dataclass, those of nested ones and of lists of them included."""
    found: set[str] = set()
    for name, kind in typing.get_type_hints(schema).items():
        inner = next((k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)), None)
        found |= fields(inner, f"{at}{name}.") if isinstance(inner, type) else {at + name}
    return found


def test_every_number_has_its_range() -> None:
    def bare(schema: Any, at: str) -> list[str]:
        found = []
        for item in dataclasses.fields(schema):
            kind = typing.get_type_hints(schema)[item.name]
            parts = {kind, *typing.get_args(kind)}
            found += [
                name for part in parts if dataclasses.is_dataclass(part) for name in bare(part, f"{at}{item.name}.")
            ]
            found += [at + item.name] * bool({int, float} & parts and "range" not in item.metadata)
        return found

    assert bare(Config, "") == []


composed = functools.cache(config)


def keys(root: Path, changes: dict[str, Any]) -> set[str]:
    """Keys of all stages of the recipes with some fields changed."""
    found = set()
    for recipe in RECIPES:
        cfg = copy.deepcopy(composed(recipe))
        cfg.run.dir = str(root)
        for path, value in changes.items():
            _set(cfg, path.split("."), value)
        found |= {step.key for step in plan.of_config(cfg).steps}
    return found


def _set(at: Any, path: list[str], value: Any) -> None:
    at = at[0] if isinstance(at, list) else at
    if len(path) > 1:
        _set(getattr(at, path[0]), path[1:], value)
        return
    old = getattr(at, path[0])
    setattr(at, path[0], _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(old[name], new[name]) for name in old.keys() & new.keys() if isinstance(old[name], dict)}
    return {**old, **new, **both}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return keys(tmp_path_factory.mktemp("run"), {})


def test_every_field_is_classified_once() -> None:
    told = [*IDENTITY, *RUNTIME, *ELSEWHERE]
    assert len(told) == len(set(told))
    assert fields(Config) == set(told), "a new field of the config: say here whether it is identity or run-time"


@pytest.mark.parametrize("path", IDENTITY)
def test_another_value_of_an_identity_field_is_another_stage(path: str, tmp_path: Path, before: set[str]) -> None:
    value = IDENTITY[path]
    if path == "reward.path":
        value = str(tmp_path / "own.py")
        (tmp_path / "own.py").write_text("def compute_score(**_): return 1.0\n")
    assert keys(tmp_path, {**given(path), path: value}) != (keys(tmp_path, given(path)) if given(path) else before)


@pytest.mark.parametrize("path", RUNTIME)
def test_a_run_time_field_changes_no_stage(path: str, tmp_path: Path, before: set[str]) -> None:
    assert keys(tmp_path, {**given(path), path: RUNTIME[path]}) == (
        keys(tmp_path, given(path)) if given(path) else before
    )


def test_how_the_server_computes_is_run_time(tmp_path: Path, before: set[str]) -> None:
    args = [arg for arg in composed("base").evaluate.server if "=" in arg and "max-num" not in arg]
    other = [*reversed(args), "--max-num-seqs=3", "--no-enable-prefix-caching", "--tensor-parallel-size", "2"]
    assert keys(tmp_path, {"evaluate.server": other}) == before


def test_data_in_a_folder_count_by_their_content(tmp_path: Path) -> None:
    def of(name: str, text: str = "{}", **more: Any) -> set[str]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file in ("train.jsonl", "val.jsonl", "bench_open.jsonl", "bench_choice.jsonl"):
            (folder / file).write_text(text + "\n")
        return keys(tmp_path / "run", {"data.source": str(folder), **more})

    one = of("one")
    assert one == of("two") == of("one", **{"data.seed": 7, "data.sizes": {"train": 3}}), "those are the lab's"
    assert not one & of("one", "[]")


def test_paths_in_settings_do_not_count_but_what_lies_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.path"):
        keys(tmp_path, {"reward.path": str(tmp_path / "none.py")})

"""Every recipe at the paper's scales makes native configs that the frameworks' own parsers accept: on eight GPUs of a host, on
one, and on nodes of a cluster."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_checkpoint
from test_conformance import pythons
from test_strategies import RECIPES, config

from synergy import lab, machine, paths, stages, strategies
from synergy.cluster import needs
from synergy.driver import identity
from synergy.stages import Job, Stage
from synergy.workers import vllm_server

pytestmark = pytest.mark.slow

SCALES = ("qwen2_5_vl_3b", "qwen2_5_vl_7b")
BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
"""What a person gives, beside recipe and scale."""
PLACES: dict[str, tuple[int, tuple[str, ...]]] = {
    "a host": (8, ()),
    "a GPU": (1, ("rl.verl.trainer.n_gpus_per_node=1",)),
    "nodes": (0, ("cluster=ray", "cluster.nodes=2", "cluster.gpus=8")),
}
"""How many GPUs this host has, and the words that a person gives for them."""
Verdicts = dict[str, list[str | None]]


def spoilt(framework: str, config: Any) -> Any:
    """The config with a mistake that only the framework's own parser sees."""
    mistakes: dict[str, Any] = {
        "llamafactory": lambda: {**config, "fsdp": "half_shard"},
        "verl": lambda: [*config, "actor_rollout_ref.actor.loss_agg_mode=median"],
        "vllm_server": lambda: [*config, "--max-model-len", "10000000"],
        "vllm_engine": lambda: {**config, "max_model_len": 10_000_000},
        "mergekit": lambda: {**config, "models": 3},
    }
    return mistakes[framework]()


def stand_in(folder: Path) -> Path:
    """The lab's model with the context of the real ones (Qwen2.5-VL's config.json), since there is no network."""
    folder.mkdir()
    for file in lab.BASE.iterdir():
        (folder / file.name).symlink_to(file)
    made = json.loads((lab.BASE / "config.json").read_text()) | {"max_position_embeddings": 128000}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(made))
    return folder


def planned(*words: str) -> dict[str, Stage]:
    """By key: all stages that differ, of all recipes and both scales."""
    found: dict[str, Stage] = {}
    for recipe in RECIPES:
        for scale in SCALES:
            cfg = config(recipe, f"scale={scale}", "data.source=/data", f"model.path=/{scale}", BENCH, *words)
            for stage in strategies.stages(cfg):
                found.setdefault(identity.key(identity.identity(stage, {}, {})), stage)
    return found


def native(stage: Stage, key: str, folder: Path, inputs: dict[str, Path]) -> tuple[str, Any] | None:
    """(parser, config) as the stage's command has it; None for a stage of no framework."""
    job = Job(stage, key, folder, folder / "attempt-1", inputs, pythons())
    job.attempt.mkdir(parents=True)
    job.work.mkdir()
    command = stages.kind(stage.kind).command(job)
    assert command is not None
    if stage.kind == "sft":
        return "llamafactory", yaml.safe_load(Path(command.argv[-1]).read_text())
    if stage.kind == "rl":
        return "verl", list(command.argv[3:])
    if stage.kind == "merge":
        return "mergekit", yaml.safe_load(next(job.attempt.glob("*.y*ml")).read_text())
    if stage.kind == "prepare":
        return None
    spec = json.loads(Path(command.argv[-1]).read_text())
    if stage.kind == "sample":
        return "vllm_engine", {"model": spec["model"], **spec["engine"]}
    server = vllm_server.ServerConfig(Path(spec["model"]), "name", job.work / "log", spec["server"]["args"])
    return "vllm_server", vllm_server.command(server, 8000)[3:]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Verdicts:
    folder = tmp_path_factory.mktemp("native")
    data = folder / "data"
    (data / "sft").mkdir(parents=True)
    for split in ("train", "validation"):
        (data / f"sft/{split}.json").write_text(json.dumps([{}] * 640))
    for file in ("benchmarks.json", "order.json"):
        (data / file).write_text(json.dumps([] if "bench" in file else [f"q{i}" for i in range(256)]))
    roles = dict.fromkeys(["data", "order", "media", "benchmarks", "source"], data)
    base = stand_in(folder / "model")
    inputs = {**roles, "base": base, "model": base}
    small = make_checkpoint(folder / "small")
    merged = {
        "base": small,
        "sft": make_checkpoint(folder / "sft", shift=0.1),
        "rl": make_checkpoint(folder / "rl", shift=0.2),
    }
    asked: dict[str, list[Any]] = {}
    for place, (gpus, words) in PLACES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "gpus", lambda gpus=gpus: [str(i) for i in range(gpus)])
            for key, stage in planned(*words).items():
                if place != "a host" and stage.kind not in needs.SPREAD:
                    continue  # the same there
                need = needs.of(stage)
                assert need is None if place != "nodes" else need and (need.nodes, need.gpus) == (2, 8)
                stages.kind(stage.kind).check(stage, pythons())
                made = native(stage, key, folder / place / key[:12], merged if stage.kind == "merge" else inputs)
                if made:
                    asked.setdefault(made[0], []).append(made[1])
    for framework, configs in asked.items():
        configs.append(spoilt(framework, configs[0]))
    program = [warm_python, str(Path(__file__).with_name("native_parsers.py"))]
    env = {**os.environ, "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(program, input=json.dumps(asked), capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, shlex.join(program) + done.stderr[-3000:]
    verdicts: Verdicts = json.loads(done.stdout.splitlines()[-1])
    return verdicts


@pytest.mark.parametrize("framework", ["llamafactory", "verl", "vllm_server", "vllm_engine", "mergekit"])
def test_the_frameworks_own_parser_accepts_all_but_the_spoilt_one(told: Verdicts, framework: str) -> None:
    *ours, wrong = told[framework]
    assert ours and set(ours) == {None}
    assert wrong

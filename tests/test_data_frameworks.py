"""What was prepared from published layouts, in the frameworks themselves: LLaMA-Factory trains a step on it, verl's data set
class reads it, VLMEvalKit asks its questions. Real code in its own environments, the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sources
import yaml
from stub_openai import Stub, images_of, serve
from test_data_prepare import asked
from test_eval import MODEL, evaluate, results, spec

from synergy.config import Source as Given
from synergy.data import records, verb
from synergy.lab import BASE

pytestmark = pytest.mark.slow

READ_BY_VERL = """
import json, sys
from omegaconf import OmegaConf
from transformers import AutoProcessor, AutoTokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset
files, base = sys.argv[1:]
config = OmegaConf.create({"max_prompt_length": 256, "filter_overlong_prompts": True, "filter_overlong_prompts_workers": 1})
rows = RLHFDataset(files, AutoTokenizer.from_pretrained(base), config, AutoProcessor.from_pretrained(base))
told = [[r["extra_info"]["id"], r["reward_model"]["ground_truth"], len(r.get("multi_modal_data", {}).get("image", [])),
         [part["type"] for part in r["raw_prompt"][0]["content"]] if isinstance(r["raw_prompt"][0]["content"], list) else []]
        for r in map(rows.__getitem__, range(len(rows)))]
print("TOLD " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eureka-Distill's turns and s1.1 to train on, MMK12's train split to validate and its test split as a benchmark."""
    root = tmp_path_factory.mktemp("data")
    mmk12 = str(sources.mmk12(root / "mmk12"))
    given = [
        Given(name="distill", path=str(sources.sharegpt(root / "distill")), layout="eureka_distill"),
        Given(name="s1", path=str(sources.s1_1(root / "s1")), layout="s1.1"),
        Given(name="val", path=mmk12, layout="mmk12", into="validation"),
        Given(name="mmk12", path=mmk12, layout="mmk12", split="test", into="benchmark"),
    ]
    return verb.prepare(asked(root, given, checks={"id": "repair"}))


def ran(words: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_llamafactory_trains_a_step(place: Path, warm_python: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(BASE),
        "template": "qwen2_vl",
        "dataset_dir": str(place / "llamafactory"),
        "media_dir": str(place / "records"),
        "dataset": "train",
        "finetuning_type": "full",
        "cutoff_len": 256,
        "image_max_pixels": 262144,
        "max_steps": 1,
        "per_device_train_batch_size": 6,
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "bf16": False,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "logging_steps": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    env = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran([warm_python, "-m", "llamafactory.cli", "train", "config.yaml"], tmp_path, env)
    (line, *_) = (tmp_path / "out/trainer_log.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] > 0
    told = json.loads((tmp_path / "out/train_results.json").read_text())
    assert told["epoch"] == 1.0, "all six rows, three with an image"


def test_verls_data_set_reads_it(place: Path, warm_python: str, tmp_path: Path) -> None:
    env = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    words = [warm_python, "-c", READ_BY_VERL, str(place / "verl/train-*.parquet"), str(BASE)]
    told = json.loads(ran(words, tmp_path, env).partition("TOLD ")[2])
    wanted = records.read(place / "records/train.jsonl")
    assert [row[:2] for row in told] == [[r.id, r.answer] for r in wanted]
    assert [row[3].count("image") for row in told] == [len(r.images) for r in wanted] == [1, 1, 1, 0, 0, 0]


def test_vlmevalkit_asks_its_questions(place: Path, tmp_path: Path, eval_python: str) -> None:
    shown = []

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        shown.append(images_of(request))
        return 200, "<think>\nHm.\n</think>\n\\boxed{3}"

    with serve(Stub(MODEL, answer)) as stub:
        done = evaluate(eval_python, spec(tmp_path, stub.endpoint, [("mmk12", place / "vlmevalkit/mmk12.tsv", "open")]))
    assert done.returncode == 0, done.stderr[-2000:]
    (record,) = records.read(place / "records/mmk12.jsonl")
    told = results(tmp_path)
    assert [(row["id"], row["correct"]) for row in told] == [(record.id, True)] * 2, "two runs"
    assert len(shown) == 2 and all(len(images) == 1 for images in shown)

"""launch/plugins/verl_reference.py and verl_positions.py: where verl's reference model lies is what its key says, and in
bfloat16 it computes what it computes in float32; with verl's own engine."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from test_strategies import plan
from test_within_update import environment, job, run

from synergy import paths
from synergy.stages import fit_rl, rl

pytestmark = pytest.mark.slow
COMPUTE = "++actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=bf16"
"""As on GPUs: FSDP casts weights of float32 before it computes."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Any:
    folder = tmp_path_factory.mktemp("reference")
    words = [*job("rl", "rl"), COMPUTE]

    def told(away: bool, dtype: str) -> list[str]:
        return [*words, rl.override(fit_rl.AWAY[0], away), rl.override(fit_rl.REFERENCE_DTYPE, dtype)]

    cases = {
        "stock": [told(False, "fp32"), told(False, "bf16")],
        "changed": [told(False, "fp32"), told(False, "bf16"), told(True, "fp32")],
    }
    (folder / "in.json").write_text(json.dumps(cases))
    env = environment(folder) | {"VERL_USE_EXTERNAL_MODULES": "synergy_verl"}
    run(warm_python, "verl_references.py", str(folder / "in.json"), str(folder / "out.json"), **env)
    return json.loads((folder / "out.json").read_text())


def test_it_stays_or_goes_as_the_key_says_and_is_the_same_model(found: Any) -> None:
    stays, _, goes = found["changed"]
    assert stays["policies"] == ["NoneType"] and goes["policies"] == ["CPUOffloadPolicy"]
    assert stays["read_only"] and goes["read_only"]
    assert stays["sum"] == goes["sum"] and stays["logits"] == goes["logits"]


def test_half_the_bytes_compute_the_same(found: Any) -> None:
    whole, half, _ = found["changed"]
    assert (whole["dtypes"], half["dtypes"]) == (["torch.float32"], ["torch.bfloat16"])
    assert half["logits"] == whole["logits"]


def test_the_reasons_are_still_there(found: Any) -> None:
    whole, half = found["stock"]
    assert whole["policies"] == ["CPUOffloadPolicy"], "verl heeds its key: verl_reference can go"
    apart = max(abs(a - b) for a, b in zip(whole["logits"], half["logits"], strict=True))
    assert apart > 0.1, "verl keeps the rotary frequencies in float32: verl_positions can go"


PLACES = """
from verl.models.transformers import qwen2_vl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
changed = (FSDPEngine._build_fsdp_module, FSDPEngine._build_module, qwen2_vl._get_input_embeds)
print(*[one.__module__ for one in changed])
"""


@pytest.mark.parametrize("scale", ["tiny", "qwen2_5_vl_7b"])
def test_a_process_of_verls_has_them_all(scale: str, warm_python: str) -> None:
    words = ["scale=qwen2_5_vl_7b", "data.source=/data"] if scale != "tiny" else []
    told = plan("rl", *words)["rl"].settings["env"]
    env = {**told, "VERL_PLATFORM": "cpu", "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([warm_python, "-c", PLACES], env=env, capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["verl_reference", "verl_positions", "verl_text_rows"], done.stderr[-2000:]

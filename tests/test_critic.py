"""PPO with a critic: part of a stage only where verl builds one, frozen as the policy is, and resumed with it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from doubles import pickled
from test_strategies import config, plan

from synergy import lab, paths, strategies
from synergy.driver import disk, handoff, ledger
from synergy.driver.plan import Step
from synergy.errors import UserError
from synergy.stages import Job, Stage, rl

PLUGINS = paths.ROOT / "launch" / "plugins"
PPO = "ablation/rl_ppo"
BENCH = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
SCALES = {
    "tiny": [],
    **{
        f"qwen2_5_vl_{size}": [f"scale=qwen2_5_vl_{size}", "data.source=/data", "model.revision=" + "0" * 40, BENCH]
        for size in ("3b", "7b")
    },
}


def stage(recipe: str, *overrides: str) -> Stage:
    return next(stage for stage in strategies.stages(config(recipe, *overrides)) if stage.kind == "rl")


@pytest.mark.parametrize("scale", SCALES)
def test_ppo_is_grpo_with_a_critic_and_nothing_else(scale: str) -> None:
    ppo, grpo = (dict(stage(recipe, *SCALES[scale]).settings) for recipe in (PPO, "rl"))
    assert "critic" not in grpo["verl"] and "critic" not in grpo["verl_add"], "no part of what plain GRPO is known by"
    critic, added = ({**ppo[part]}.pop("critic") for part in ("verl", "verl_add"))
    algorithm = {**grpo["verl"]["algorithm"], "adv_estimator": "gae", "gamma": 1.0, "lam": 1.0}
    assert ppo["verl"] == {**grpo["verl"], "algorithm": algorithm, "critic": critic}
    assert ppo["verl_add"] == {**grpo["verl_add"], "critic": added}
    assert {**ppo, "verl": 0, "verl_add": 0} == {**grpo, "verl": 0, "verl_add": 0}


def test_any_recipe_can_have_a_critic() -> None:
    stages = plan("progressive", "rl.verl.algorithm.adv_estimator=gae")
    assert all("critic" in stages[f"rl-{n}"].settings["verl"] for n in (1, 2, 3))
    assert stages["rl-3"].note.startswith("PPO")
    cosine = "+rl.verl.critic.optim.lr_scheduler_type=cosine"
    assert plan("progressive", cosine) == plan("progressive"), "nor does the schedule of a critic that is not there"
    assert "critic" in plan("rl", "+rl.verl.critic.enable=true")["rl"].settings["verl"], "verl would build one"
    with pytest.raises(UserError, match=r"critic\.enable"):
        plan(PPO, "+rl.verl.critic.enable=false")


def test_micro_batches_and_offload_of_the_critic_are_run_time_settings() -> None:
    same = ["rl.verl_add.critic.ppo_infer_max_token_len_per_gpu=1024", "+rl.verl.critic.fsdp.param_offload=true"]
    known = rl.identity(stage(PPO).settings)
    assert rl.identity(stage(PPO, *same).settings) == known
    assert rl.identity(stage(PPO, "rl.verl.critic.optim.lr=1e-4").settings) != known


# A stopped run ------------------------------------------------------------------------------------------------------


EMPTY_ZIP = b"PK\5\6" + b"\0" * 18
"""What torch.save writes is a zip file."""


def saved(folder: Path, step: int, models: tuple[str, ...], world: int = 2) -> None:
    """A checkpoint of verl's: shards of `models` by `world` processes, and the policy's weights."""
    at = folder / "checkpoints" / f"global_step_{step}"
    for model in models:
        (at / model).mkdir(parents=True)
        for kind in ("model", "optim", "extra_state"):
            for rank in range(world):
                (at / model / f"{kind}_world_size_{world}_rank_{rank}.pt").write_bytes(EMPTY_ZIP)
    make_checkpoint(at / "actor" / "huggingface")
    (at / "data.pt").write_bytes(pickled({}))
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))


def job(folder: Path, recipe: str) -> Job:
    return Job(stage(recipe), "k" * 64, folder, folder / "attempt-1", {}, {})


@pytest.mark.parametrize("harm", ["no critic", "no optimizer of a rank", "nothing"])
def test_a_checkpoint_without_its_critic_is_stepped_over(harm: str, tmp_path: Path) -> None:
    made = job(tmp_path, PPO)
    saved(made.work, 1, ("actor", "critic"))
    saved(made.work, 2, ("actor", "critic"))
    critic = made.work / "checkpoints/global_step_2/critic"
    if harm == "no critic":
        shutil.rmtree(critic)
    elif harm == "no optimizer of a rank":
        (critic / "optim_world_size_2_rank_1.pt").unlink()
    assert rl.resume_point(made) == (2 if harm == "nothing" else 1)
    assert rl.resume_point(replace(made, stage=stage("rl"))) == 2, "GRPO needs none"


def test_the_critic_takes_its_disk(tmp_path: Path) -> None:
    inputs, count = {"base": lab.BASE}, disk.parameters(lab.BASE)
    sizes = [disk.of_step(Step(stage(name), "k", {}, tmp_path, inputs, "run", ""), 100) for name in ("rl", PPO)]
    assert sizes[1] - sizes[0] == (2 + 1) * count * (disk.WHOLE + disk.MOMENTS), "two are kept, one is being written"


def test_value_loss_and_explained_variance_are_kept(tmp_path: Path) -> None:
    made = job(tmp_path, PPO)
    made.attempt.mkdir(parents=True)
    data = {"critic/score/mean": 0.5, "critic/vf_loss": 0.1, "critic/vf_explained_var": 0.4}
    (made.attempt / "verl_metrics.jsonl").write_text(json.dumps({"step": 1, "data": data}))
    assert list(rl._metrics(made)) == [(1, {"reward": 0.5, "value_loss": 0.1, "value_explained": 0.4})]


# The plug-in --------------------------------------------------------------------------------------------------------


def native(scale: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """verl's whole configuration of the recipe at this scale, composed from verl's own files."""
    pytest.importorskip("verl")
    monkeypatch.syspath_prepend(str(PLUGINS))
    import verl_config

    paths_of = [f"{part}.model.path={model}" for part in ("critic", "actor_rollout_ref")]
    return verl_config.resolved([*rl.overrides(stage(PPO, *SCALES[scale]).settings), *paths_of])


@pytest.mark.parametrize("scale", SCALES)
def test_verls_own_checks_accept_the_critic(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = native(scale, lab.BASE, monkeypatch)
    from verl.trainer.ppo.utils import need_critic
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    assert need_critic(found)
    validate_config(found, use_reference_policy=True, use_critic=True)
    critic = omega_conf_to_dataclass(found.critic)
    actor = found.actor_rollout_ref
    assert critic.engine.strategy == "fsdp2" and critic.rollout_n == 8
    assert critic.ppo_mini_batch_size == actor.actor.ppo_mini_batch_size
    assert critic.model.freeze_vision_tower == actor.actor.freeze_vision_tower
    assert critic.model.hf_config._attn_implementation == actor.model.override_config.attn_implementation


BUILD = """
import sys
from ray import cloudpickle
config = cloudpickle.loads(sys.stdin.buffer.read())  # as in a worker, which never imports the plug-in by name
from verl.utils.model import load_valuehead_model
import torch
model = load_valuehead_model(config.local_path, torch.float32, config.hf_config, False)
trained = {name for name, value in model.named_parameters() if value.requires_grad}
vision = {name for name, _ in model.named_parameters() if ".visual." in name}
print(model.config._attn_implementation, len(vision) > 0, len(vision & trained),
      any("v_head" in name for name in trained), any("language_model" in name for name in trained))
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.models.transformers.qwen2_vl import forward_with_normal_backend
body = model.eval().pretrained_model
apply_monkey_patch(body, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend="torch")  # as the policy is
vision, generator = body.config.vision_config, torch.Generator().manual_seed(0)
image = [body.config.image_token_id] * 4
picture = torch.rand(16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2, generator=generator)
given = {"input_ids": torch.tensor([[100, *image, 101, 102]]), "position_ids": torch.arange(7).expand(4, 1, 7),
         "pixel_values": picture, "image_grid_thw": torch.tensor([[1, 4, 4]]), "use_cache": False}
with torch.no_grad():
    logits, loss, values = model(**given)
    stock = forward_with_normal_backend(body, **given, output_hidden_states=True)
    fused = type(body).forward(body, **given)
print(values.shape == (1, 7), torch.equal(values, model.v_head(stock.hidden_states[-1]).squeeze(-1)), fused.logits is None)
"""


def test_a_workers_critic_has_its_configs_attention_a_frozen_vision_tower_and_no_logits(
    warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = native("tiny", lab.BASE, monkeypatch)
    from ray import cloudpickle
    from verl.utils.config import omega_conf_to_dataclass

    done = subprocess.run(
        [warm_python, "-c", BUILD],
        input=cloudpickle.dumps(omega_conf_to_dataclass(found.critic.model)),
        env={**os.environ, "PYTHONPATH": str(PLUGINS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:].decode()
    told = [line for line in done.stdout.decode().splitlines() if line.startswith(("sdpa", "True"))]
    assert told[0] == "sdpa True 0 True True"
    assert told[1] == "True True True", (
        "values beside a policy with fused kernels, as without; those give no logits still"
    )


def test_the_reasons_for_the_critics_plug_in_still_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verl")
    monkeypatch.syspath_prepend(str(PLUGINS))
    import verl_critic
    from transformers import AutoModelForTokenClassification, Qwen2_5_VLConfig
    from verl.utils import model
    from verl.workers import engine_workers
    from verl.workers.config import CriticConfig

    assert 'attn_implementation="flash_attention_2"' in inspect.getsource(model.load_valuehead_model)
    assert model.AutoModelForVision2Seq is verl_critic._Body
    assert Qwen2_5_VLConfig not in AutoModelForTokenClassification._model_mapping, "no need of trl's value head"
    assert "freeze_vision_tower" not in CriticConfig.__dataclass_fields__, "verl freezes the critic's vision tower"
    assert "external_lib" not in inspect.getsource(engine_workers.TrainingWorker), "external_lib reaches workers"


# The real thing -----------------------------------------------------------------------------------------------------


def interrupted(argv: list[str], happened: Callable[[], bool]) -> None:
    """Run the command until `happened`, then stop it as Ctrl-C does."""
    driver = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=paths.PACKAGE.parent)
    end = time.time() + 900
    while not happened():
        assert driver.poll() is None and time.time() < end
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=180) == 130


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ppo_that_was_interrupted_continues_with_its_critic(tmp_path: Path) -> None:
    words = [f"run.dir={tmp_path}", f"recipe={PPO}", "data.sizes={train: 32, val: 8, bench: 5}", "evaluate.runs=1"]
    words += ["budget.rl_steps=3", "rl.verl.data.train_batch_size=8", "rl.verl.trainer.save_freq=1"]
    words += ["+rl.verl.actor_rollout_ref.model.use_fused_kernels=true"]  # as at the paper's scales
    words += ["+rl.verl.actor_rollout_ref.model.fused_kernel_options.impl_backend=torch"]
    argv = [sys.executable, "-m", "synergy.run", *words, "rl.verl.actor_rollout_ref.rollout.n=4"]

    def finished() -> dict[str, ledger.Entry]:
        return {entry.name: entry for entry in ledger.read(tmp_path / "ledger.jsonl").values()}

    def logged() -> bool:  # verl tells a step's figures after it has saved its checkpoint
        return any(file.stat().st_size for file in tmp_path.glob("stages/rl-*/attempt-1/verl_metrics.jsonl"))

    interrupted(argv, logged)
    interrupted(argv, lambda: "rl" in finished())  # what it evaluates to is not the question
    made = finished()["rl"]
    folder = (tmp_path / made.output).parent
    assert made.attempt == 2
    assert "trainer.resume_mode='resume_path'" in (folder / "attempt-2/overrides.txt").read_text()
    log = (folder / "attempt-2/log.txt").read_text()
    assert all(re.search(rf"Loaded {part} from \S+/global_step_\d/critic/", log) for part in ("model", "optimizer"))
    assert log.count("frozen: 30 tensors") == 2, "the vision tower of policy and critic"
    rows = [json.loads(line) for line in (folder / "attempt-2/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["value_loss"] > 0 and row["value_explained"] < 1 for row in rows)
    assert handoff.count_changed(tmp_path / made.output, lab.BASE) > 0

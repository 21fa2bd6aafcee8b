"""launch/plugins/verl_reference.py: where verl's reference model lies is what its key says, with verl's own engine."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
from test_strategies import config
from test_within_update import job

from synergy import environments, paths
from synergy.stages import rl

pytestmark = pytest.mark.slow
BUILD = """
import sys, json
import verl_config
from omegaconf import open_dict
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

def policies(overrides):
    '''As verl.workers.engine_workers.ActorRolloutRefWorker.init_model makes its reference model.'''
    told = verl_config.resolved(overrides).actor_rollout_ref
    with open_dict(told.ref):
        for name in [key for key in told.ref if key.startswith("log_prob_")]:
            told.ref.pop(name)
        told.ref.ppo_mini_batch_size = told.actor.ppo_mini_batch_size
        told.ref.use_dynamic_bsz, told.ref.ppo_max_token_len_per_gpu = True, 16384
    ref = omega_conf_to_dataclass(told.ref)
    ref.model_config = omega_conf_to_dataclass(told.model)
    made = TrainingWorker(config=TrainingWorkerConfig(
        model_type="language_model", model_config=ref.model_config, engine_config=ref.engine,
        optimizer_config=ref.optim, checkpoint_config=ref.checkpoint,
    ))
    made.reset()
    groups = {type(m._get_fsdp_state()._fsdp_param_group.offload_policy).__name__ for m in made.engine.module.modules()
              if hasattr(m, "_get_fsdp_state") and m._get_fsdp_state()._fsdp_param_group}
    return sorted(groups), made.engine.engine_config.forward_only, sum(p.full_tensor().double().sum().item()
                                                                       for p in made.engine.module.parameters())

stays, goes = json.loads(sys.argv[1])
found = [policies(stays)]
import verl_reference
found += [policies(stays), policies(goes)]
print(found)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[str], bool, float]]:
    """Of a model that is to stay, without the plug-in; the same with it; of one that is to go, with it."""
    words = job("rl", "rl")
    key = "actor_rollout_ref.ref.fsdp_config.param_offload"
    told = json.dumps([[*words, rl.override(key, away)] for away in (False, True)])
    meet = tmp_path_factory.mktemp("meet") / "here"
    env = {
        **os.environ,
        **config("rl").rl.env,
        "PYTHONPATH": os.pathsep.join((paths.pythonpath(), str(Path(__file__).parent))),
    }
    env |= {
        "DIST_INIT_METHOD": f"file://{meet}",
        "GLOO_SOCKET_IFNAME": "lo",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "VERL_USE_EXTERNAL_MODULES": "synergy_verl"}
    argv = [str(environments.locate("verl")), "-c", BUILD, told]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made: list[tuple[list[str], bool, float]] = ast.literal_eval(done.stdout.splitlines()[-1])
    return made


def test_it_stays_or_goes_as_the_key_says_and_is_the_same_model(found: list[tuple[list[str], bool, float]]) -> None:
    _, stays, goes = found
    assert stays[0] == ["NoneType"] and goes[0] == ["CPUOffloadPolicy"]
    assert stays[1] and goes[1], "a model that is only read"
    assert stays[2] == goes[2]


def test_the_reason_is_still_there(found: list[tuple[list[str], bool, float]]) -> None:
    assert found[0][0] == ["CPUOffloadPolicy"], "verl heeds its key: the plug-in can go"

"""The plug-ins for verl and the torch shim: that they work, and that each is still needed by the pinned packages."""

import asyncio
import importlib.metadata
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
pytestmark = pytest.mark.usefixtures("plugins_importable")

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "launch" / "plugins"
CPU_ONLY = pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")


def run(code: str, **environment: str) -> str:
    """Run `code` in a fresh Python with the plug-ins importable; its last line of output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PLUGINS), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


# The shim ------------------------------------------------------------------------------------------------------------

IMPORT = """
import sys
if {bare}:
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "torch_cpu_shim"]
else:
    import torch_cpu_shim
results = []
for name in ("torchvision", "torchaudio", "torchcodec"):
    try:
        __import__(name)
        results.append("ok")
    except Exception as error:
        results.append(type(error).__name__)
print(*results)
"""


@CPU_ONLY
def test_torch_libraries_import_with_the_shim_only() -> None:
    for name in ("torchvision", "torchaudio", "torchcodec"):
        pytest.importorskip("importlib.metadata").version(name)
    assert run(IMPORT.format(bare=False)) == "ok ok ImportError"
    bare = run(IMPORT.format(bare=True)).split()
    assert "ok" not in bare[:2], "PyPI's wheels import beside a CPU torch by themselves: drop the shim"


def test_the_shim_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import torch_cpu_shim; print('new', *set(sys.modules) - before)"
    assert set(run(code).split()) <= {"new", "torch_cpu_shim", "__future__"}


# The CPU platform ----------------------------------------------------------------------------------------------------


STOCK = """
import torch, verl
from tensordict import TensorDict
from verl.plugin.platform import PlatformRegistry
from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
parts = [torch.arange(20).reshape(4, 5) for _ in range(3)]
data = TensorDict({"position_ids": torch.nested.as_nested_tensor(parts, layout=torch.jagged)}, batch_size=[3])
maybe_fix_3d_position_ids(data)
try:
    mended = all(torch.equal(one, two) for one, two in zip(data["position_ids"].unbind(), parts, strict=True))
except RuntimeError:
    mended = False
print("cpu" in PlatformRegistry.registered_names(), mended)
"""


def test_verl_itself_has_no_cpu_platform_and_does_not_mend_position_ids() -> None:
    assert run(STOCK, VERL_USE_EXTERNAL_MODULES="", VERL_PLATFORM="") == "False False", (
        "verl can do it itself: drop ours"
    )


STATE = """
import importlib.metadata, os, torch.distributed as dist, verl
from verl.plugin.platform import PlatformRegistry
from verl.utils import device, tensordict_utils
from torch.distributed.fsdp import CPUOffloadPolicy
own = [f.__module__.startswith("synergy") for f in (
    dist.init_process_group, CPUOffloadPolicy.__init__, importlib.metadata.version,
    tensordict_utils.maybe_fix_3d_position_ids)]
print("cpu" in PlatformRegistry.registered_names(), *own, os.environ.get("VERL_ENGINE_DEVICE"),
      device.get_device_name())
"""


@CPU_ONLY
def test_it_changes_nothing_until_it_is_selected() -> None:
    hook = {"VERL_USE_EXTERNAL_MODULES": "synergy_verl"}
    assert run(STATE, **hook, VERL_PLATFORM="") == "True False False False False None cuda"
    assert run(STATE, **hook, VERL_PLATFORM="cpu") == "True True True True True cuda cpu"


def test_the_reasons_for_the_changes_still_hold() -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy
    from verl.utils import distributed
    from verl.workers.engine.fsdp import transformer_impl

    assert CPUOffloadPolicy().pin_memory, "torch no longer pins by default"
    source = inspect.getsource(transformer_impl)
    assert "CPUOffloadPolicy(pin_memory=True)" in source
    assert 'device=["cuda", "npu"]' in source, "the FSDP engine may be registered for cpu now"
    assert "cpu:gloo," in inspect.getsource(distributed) and "get_device_name" in inspect.getsource(distributed)
    if torch.version.cuda is None:
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution("vllm")


def rows(lengths: list[int]) -> Any:
    from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

    parts = [torch.arange(4 * length).reshape(4, length) for length in lengths]
    return parts, nested_tensor_from_tensor_list(parts, ragged_idx=2)


def test_position_ids_of_equal_length_are_mended() -> None:
    from synergy_verl_cpu import fix_3d_position_ids
    from tensordict import TensorDict

    for lengths in ([5, 5, 5], [3, 6]):
        parts, good = rows(lengths)
        # what TransferQueue gives for equal lengths: ragged along the axis of size 4
        given = torch.nested.as_nested_tensor(parts, layout=torch.jagged) if len(set(lengths)) == 1 else good
        data = TensorDict({"position_ids": given}, batch_size=[len(lengths)])
        fix_3d_position_ids(data)
        mended = data["position_ids"]
        assert mended._ragged_idx == 2
        assert all(torch.equal(one, two) for one, two in zip(mended.unbind(), parts, strict=True))


# Vision freezing -----------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """The names of a Qwen2.5-VL, small."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.visual = torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 4), "merger": torch.nn.Linear(4, 4)})
        self.model.language_model = torch.nn.Linear(4, 2)

    def forward(self, pixels: Any) -> Any:
        return self.model.language_model(self.model.visual["merger"](self.model.visual["blocks"](pixels)))


def test_stock_verl_ignores_the_key() -> None:
    from verl.workers.engine.fsdp import transformer_impl

    assert "freeze_vision" not in inspect.getsource(transformer_impl), "verl freezes the vision tower itself: drop ours"


def engine_with(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A stock FSDPEngine built by the stock actor config, as far as the hook reaches, around the small model."""
    import verl_freeze_vision
    from verl.workers.config import FSDPEngineConfig
    from verl.workers.config.actor import FSDPActorConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    monkeypatch.setattr(FSDPActorConfig, "__post_init__", FSDPActorConfig.__post_init__)  # restored afterwards
    monkeypatch.setattr(FSDPEngine, "_build_module", lambda self: Model())
    verl_freeze_vision.install()
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        freeze_vision_tower=freeze,
        fsdp_config=FSDPEngineConfig(strategy="fsdp2"),
    )
    engine = types.SimpleNamespace(engine_config=config.engine)
    return FSDPEngine._build_module(engine), config  # type: ignore[arg-type]


@pytest.mark.parametrize("freeze", [True, False])
def test_a_training_step_leaves_frozen_vision_tensors_untouched(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = engine_with(freeze, monkeypatch)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    vision = {name for name in before if ".visual." in f".{name}"}
    assert len(vision) == 4 and changed == (set(before) - vision if freeze else set(before))


def test_freezing_a_model_without_vision_is_an_error() -> None:
    from verl_freeze_vision import freeze_vision

    with pytest.raises(ValueError, match="no vision tensors"):
        freeze_vision(torch.nn.Linear(2, 2))


# Rollouts with a prefix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "session", "expected"),
    [
        ({"prefix": "<think>3"}, 7, "<think>3"),
        ({"prefix": "<think>3", "prefix_rollouts": -1}, 7, "<think>3"),
        ({"prefix": "<think>3", "prefix_rollouts": 2}, 1, "<think>3"),
        ({"prefix": "<think>3", "prefix_rollouts": 2}, 2, ""),
        ({"prefix": "<think>3", "prefix_rollouts": 0}, 0, ""),
        ({"prefix": None}, 0, ""),
        ({}, 0, ""),
        (None, 0, ""),
    ],
)
def test_which_rollouts_carry_the_prefix(info: Any, session: int, expected: str) -> None:
    from verl_prefix_rollout import prefix_of

    assert prefix_of(info, session) == expected


def test_the_prefix_joins_the_prompt_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl_prefix_rollout import PrefixAgentLoop

    async def build(self: Any, *_: Any, **__: Any) -> list[int]:
        return [1, 2, 3]

    async def stock_run(self: Any, sampling_params: Any, priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        ids = await self.ct_build_initial_tokens([])
        return AgentLoopOutput(prompt_ids=ids, response_ids=[9], response_mask=[1], metrics=AgentLoopMetrics())

    monkeypatch.setattr(AgentLoopBase, "ct_build_initial_tokens", build)
    monkeypatch.setattr(SingleTurnAgentLoop, "run", stock_run)

    def rollout(room: int, **kwargs: Any) -> AgentLoopOutput:
        loop = object.__new__(PrefixAgentLoop)
        loop.prompt_length = room
        loop.tokenizer = types.SimpleNamespace(encode=lambda text, add_special_tokens: [ord(letter) for letter in text])
        return asyncio.run(loop.run({}, **kwargs))

    plain = rollout(3, extra_info={"prefix": ""}, session_id=0)
    assert (plain.prompt_ids, plain.extra_fields["prefix"]) == ([1, 2, 3], "")
    row = {"prefix": "ab", "prefix_rollouts": 1}
    carried, free = rollout(5, extra_info=row, session_id=0), rollout(5, extra_info=row, session_id=1)
    assert (carried.prompt_ids, carried.response_mask, carried.extra_fields["prefix"]) == ([1, 2, 3, 97, 98], [1], "ab")
    assert (free.prompt_ids, free.extra_fields["prefix"]) == ([1, 2, 3], "")
    with pytest.raises(ValueError, match="max_prompt_length=4"):
        rollout(4, extra_info=row, session_id=0)


def test_the_agent_loop_is_named_where_verl_looks() -> None:
    from hydra.utils import get_class
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import agent_loop_tq

    entry, other = OmegaConf.load(PLUGINS / "prefix_agent.yaml")
    assert entry.name == "prefix_agent" and get_class(entry._target_).__name__ == "PrefixAgentLoop"
    assert other.name == "within_step_agent" and get_class(other._target_).__name__ == "WithinStepAgentLoop"
    assert "session_id=i" in inspect.getsource(agent_loop_tq), "verl no longer tells a rollout its number in the group"


# The replay buffer ---------------------------------------------------------------------------------------------------


def test_verl_still_polls_every_two_seconds_and_ours_does_not() -> None:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl_fast_poll import FastPoll

    assert inspect.signature(ReplayBuffer.__init__).parameters["poll_interval"].default == 2.0
    assert inspect.signature(FastPoll.__init__).parameters["poll_interval"].default < 0.1


# The check of a configuration ----------------------------------------------------------------------------------------


def test_a_configuration_is_checked_as_by_verl_itself_without_importing_it() -> None:
    overrides = [
        "algorithm.adv_estimator=grpo",
        "++actor_rollout_ref.rollout.enable_sleep_mode=false",
        "trainer.nnodes=3",
    ]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--cfg", "job", "--resolve", *overrides]
    verls = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    code = "import sys, verl_config; c = verl_config.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(c)"

    def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(PLUGINS)}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)

    assert ours(*overrides).stdout.strip() == verls[verls.index("model_engine:") :].strip()
    wrong = ours("actor_rollout_ref.actor.optim.lrr=1")
    assert wrong.returncode == 1 and "lrr" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("recipe", ["tiny", "paper"])
def test_the_recipes_fit_verl(recipe: str) -> None:
    import verl_config
    import yaml

    def leaves(tree: dict[str, Any], start: str = "") -> list[str]:
        found: list[str] = []
        for key, value in tree.items():
            if isinstance(value, dict):
                found += leaves(value, f"{start}{key}.")
            else:
                text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
                found.append(f"{start}{key}={text}")
        return found

    native = yaml.safe_load((ROOT / "recipes" / "rl" / f"{recipe}.yaml").read_text())
    assert set(native) == {"module", "verl", "verl_add", "env"}
    assert all(isinstance(value, str) for value in native["env"].values())
    config = verl_config.resolved(leaves(native["verl"]) + [f"++{leaf}" for leaf in leaves(native["verl_add"])])
    assert config.algorithm.adv_estimator == "grpo" and config.actor_rollout_ref.actor.kl_loss_coef == 0.005
    assert config.actor_rollout_ref.rollout.n == 8 and config.actor_rollout_ref.actor.use_kl_loss is True
    assert config.data.train_batch_size % config.actor_rollout_ref.actor.ppo_mini_batch_size == 0


# One Ray cluster for all RL stages -----------------------------------------------------------------------------------

OVERRIDES = ["ray_kwargs.ray_init.num_cpus=16", "++ray_kwargs.ray_init.num_gpus=1", "trainer.nnodes=1"]


@given(st.text(st.characters(codec="ascii", exclude_characters="\n\r\x00")))
def test_a_stage_s_environment_reaches_the_workers_of_a_cluster_that_is_there(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sys.path.insert(0, str(PLUGINS))
    import verl_fork

    loaded = "++ray_kwargs.ray_init.runtime_env.env_vars.VERL_X='of the stage'"
    environment = {"SYNERGY_RAY_ADDRESS": "127.0.0.1:1", "SYNERGY_REWARD": value, "VERL_X": "1", "HOME": "/"}
    environment |= {"HF_TOKEN": "planted", "VLLM_API_KEY": "planted"}  # verl would print them
    words = verl_fork.attached(environment, [*OVERRIDES, loaded])
    told = {o.get_key_element(): o.value() for o in OverridesParser.create().parse_overrides(words)}
    inside = "++ray_kwargs.ray_init."
    assert told == {
        f"{inside}address": "127.0.0.1:1",
        f"{inside}num_cpus": None,
        f"{inside}num_gpus": None,
        f"{inside}runtime_env.env_vars.SYNERGY_REWARD": value,
    }
    assert verl_fork.attached({"SYNERGY_REWARD": value}, OVERRIDES) == []

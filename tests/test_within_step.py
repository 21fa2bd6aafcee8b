"""SFT and RL in one step: exact against plain GRPO and against SFT, by verl's own functions on the tiny model."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from test_strategies import config

from synergy import lab, paths, strategies
from synergy.stages import rl

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
pytestmark = pytest.mark.usefixtures("plugins_importable")

PLUGINS = paths.ROOT / "launch" / "plugins"
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
N = 4
"""Rollouts of a question."""
WEIGHT = 0.7


@dataclass(frozen=True)
class Row:
    """A row of a step, as verl's actor gets it. mask: verl's response_mask; count: its loss_mask."""

    uid: str
    prompt: Sequence[int]
    response: Sequence[int]
    mask: Sequence[int]
    count: Sequence[int]
    reward: float = 0.0


def rollouts(uid: str, rewards: Sequence[float], given: int = 0) -> list[Row]:
    """A question's rollouts of several lengths, `given` tokens of each from a trace."""
    rng = np.random.default_rng(sum(map(ord, uid)))
    prompt, start = rng.integers(20, 200, 9).tolist(), rng.integers(20, 200, given).tolist()
    made = []
    for place, reward in enumerate(rewards):
        own = rng.integers(20, 200, 4 + place % 3).tolist()
        mask = [0] * given + [1] * len(own)
        made.append(Row(uid, prompt, start + own, mask, [1] * len(mask), reward))
    return made


def trace(uid: str, tokens: int, copies: int = N) -> list[Row]:
    """What a question without a right rollout becomes: its trace, and verl's empty rows in the others' place."""
    rng = np.random.default_rng(sum(map(ord, uid)))
    prompt, response = rng.integers(20, 200, 9).tolist(), rng.integers(20, 200, tokens).tolist()
    whole = Row("sft" + uid, prompt, response, [0] * tokens, [copies] * tokens)
    return [whole, *(Row("pad" + uid, [1] * 5, [1], [0], [0]) for _ in range(N - 1))]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """The tiny model, and the policy of an earlier step, which is a little different."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    now, then = (Qwen2_5_VLForConditionalGeneration.from_pretrained(lab.BASE, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for value in then.parameters():
            value.add_(torch.randn_like(value) * 1e-3)
    return now, then


def log_probs(model: Any, rows: Sequence[Row]) -> Any:
    """Nested (rows, tokens): the log-probability of the token after each, as verl's engine returns it."""
    found = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        every = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        found.append(torch.cat([every[:-1].gather(-1, ids[0, 1:, None])[:, 0], every[-1:, 0] * 0]))
    return torch.nested.as_nested_tensor(found, layout=torch.jagged)


def algorithm(baseline: str = "group", copies: int = N, weight: float = WEIGHT) -> Any:
    from omegaconf import OmegaConf

    told = {"sft_weight": weight, "copies": copies, "baseline": baseline}
    return OmegaConf.create({"norm_adv_by_std_in_grpo": True, "within_step": told})


def advantages(rows: Sequence[Row], estimator: str, **told: Any) -> Any:
    """By verl's own way to an estimator, GRPO's or ours."""
    import verl_within_step  # noqa: F401 - registers
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    def padded(values: list[Sequence[float]], kind: Any) -> Any:
        tensors = [torch.tensor(value, dtype=kind) for value in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    scores = padded([[0.0] * (len(row.mask) - 1) + [row.reward] for row in rows], torch.float32)
    batch = TensorDict({"response_mask": padded([row.mask for row in rows], torch.int64)}, batch_size=len(rows))
    batch["token_level_rewards"] = scores
    data = DataProto(batch=batch, non_tensor_batch={"uid": np.array([row.uid for row in rows], dtype=object)})
    keys = [f"{row.uid}_{place}_0" for place, row in enumerate(rows)]
    made = compute_advantage_for_multi_trajectories(data, keys, estimator, num_repeat=N, config=algorithm(**told))
    return made.batch["advantages"]


def loss(
    models: tuple[Any, Any],
    rows: Sequence[Row],
    name: str,
    mode: str,
    ranks: int = 1,
    kl: float = 0.0,
    **told: Any,
) -> tuple[list[float], dict[str, Any]]:
    """verl's ppo_loss of a mini-batch, and the gradients that its ranks' mean would be: each rank has every so-many-th row."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    now, then = models
    made = actor_config("vanilla" if name == "grpo" else name, mode, kl)
    marked = advantages(rows, name, **told)
    now.zero_grad(set_to_none=True)
    values = []
    for rank in range(ranks):
        mine = range(rank, len(rows), ranks)
        part = [rows[i] for i in mine]

        def nested(values: list[Any]) -> Any:
            return torch.nested.as_nested_tensor(values, layout=torch.jagged)

        def responses(values: Any, part: list[Row] = part) -> Any:
            ends = values.offsets()[1:]
            return nested([values.values()[end - len(r.mask) - 1 : end - 1] for r, end in zip(part, ends, strict=True)])

        with torch.no_grad():
            old = responses(log_probs(then, part))
        fields = {
            "prompts": nested([torch.tensor(row.prompt) for row in part]),
            "responses": nested([torch.tensor(row.response) for row in part]),
            "response_mask": nested([torch.tensor(row.mask) for row in part]),
            "advantages": nested([marked[i, : len(rows[i].mask)] for i in mine]),
            "old_log_probs": old,
            "ref_log_prob": old,
        }
        data = TensorDict(fields, batch_size=len(part))
        counted = sum(sum(row.count) for row in rows)
        tu.assign_non_tensor(data, dp_size=ranks, global_batch_size=len(rows), batch_num_tokens=counted)
        value, _ = ppo_loss(made, {"log_probs": log_probs(now, part)}, data)
        (value / ranks).backward()
        values.append(float(value.detach()))
    return values, {k: v.grad.clone() for k, v in now.named_parameters() if v.grad is not None}


@functools.cache
def actor_config(name: str, mode: str, kl: float) -> Any:
    """verl's config of the actor, of the tiny scale but for these keys."""
    import verl_config
    from verl.utils.config import omega_conf_to_dataclass

    stage = next(s for s in strategies.stages(config("rl")) if s.kind == "rl")
    at = "actor_rollout_ref.actor"
    changed = [f"{at}.loss_agg_mode={mode}", f"{at}.use_kl_loss={kl > 0}", f"{at}.kl_loss_coef={kl}"]
    changed += [f"{at}.policy_loss.loss_mode={name}", f"actor_rollout_ref.model.path={lab.BASE}"]
    return omega_conf_to_dataclass(
        verl_config.resolved([*rl.overrides(stage.settings), *changed]).actor_rollout_ref.actor
    )


def same(one: dict[str, Any], other: dict[str, Any], factor: float = 1.0) -> None:
    """To float32's rounding: some dozens of the last place of the largest gradient (2.7e-6 seen). A wrong weight or mean is far
    above."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    worst = max(float((one[name] - factor * other[name]).abs().max()) for name in one)
    assert worst <= 1e-5 * scale * factor, (worst, scale)


# Exactness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_a_trace_it_is_grpo_bit_for_bit(models: tuple[Any, Any], mode: str) -> None:
    rows = [*rollouts("a", [1, 0.1, 0, 1]), *rollouts("b", [0, 0.1, 0, 1])]
    plain, grpo = loss(models, rows, "grpo", mode, kl=0.005)
    ours, within = loss(models, rows, "within_step", mode, kl=0.005)
    assert ours == plain and grpo.keys() == within.keys()
    assert all(torch.equal(within[name], value) for name, value in grpo.items())
    assert any(value.abs().max() > 0 for value in grpo.values())


def sft(model: Any, rows: Sequence[Row], by_row: bool) -> dict[str, Any]:
    """Gradients of transformers' own loss, which LLaMA-Factory trains with: over all tokens of the batch, or row by row."""
    model.zero_grad(set_to_none=True)
    tokens = sum(len(row.response) for row in rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        labels = torch.tensor([[-100] * len(row.prompt) + list(row.response)])
        items = len(row.response) * len(rows) if by_row else tokens
        model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(items)).loss.backward()
    return {k: v.grad.clone() for k, v in model.named_parameters() if v.grad is not None}


@pytest.mark.parametrize("mode", MODES[:2])
def test_with_traces_alone_it_is_sft_times_the_weight(models: tuple[Any, Any], mode: str) -> None:
    rows = [*trace("a", 7), *trace("b", 12), *trace("c", 5)]
    _, ours = loss(models, rows, "within_step", mode, kl=0.005)
    same(ours, sft(models[0], [row for row in rows if row.uid.startswith("sft")], mode != "token-mean"), WEIGHT)


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_trace_beside_its_rollouts_is_one_row_more(models: tuple[Any, Any], mode: str) -> None:
    """sft_on=all: the mean over GRPO's rows or tokens and the trace's, as GRPO alone and SFT alone have them."""
    own, shown = rollouts("a", [1, 0, 0.1, 1]), trace("b", 7)[:1]
    shown = [dataclasses.replace(shown[0], count=[1] * 7)]
    _, both = loss(models, [*own, *shown], "within_step", mode, copies=1)
    _, grpo = loss(models, own, "grpo", mode)
    alone = sft(models[0], shown, mode != "token-mean")
    generated, traced = (sum(len(row.response) for row in own), 7) if mode == "token-mean" else (N, 1)
    wanted = {k: (generated * grpo[k] + traced * WEIGHT * alone[k]) / (generated + traced) for k in both}
    same(both, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_make_the_gradient_of_one(models: tuple[Any, Any], mode: str) -> None:
    rows = [*rollouts("a", [1, 0, 0, 1]), *trace("b", 9), *rollouts("c", [1, 0, 1, 1], given=3)]
    (one,), alone = loss(models, rows, "within_step", mode, kl=0.005)
    two, spread = loss(models, rows, "within_step", mode, ranks=2, kl=0.005)
    assert sum(two) / 2 == pytest.approx(one, rel=1e-5)
    same(spread, alone)


def by_hand(models: tuple[Any, Any], rows: Sequence[Row], given: int) -> Any:
    """Progressive's loss of one question, written out: its clipped part and its SFT part over all tokens, token-mean."""
    now, then = models
    rewards = torch.tensor([row.reward for row in rows])
    scaled = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    total, tokens = torch.zeros(()), 0
    for row, advantage in zip(rows, scaled, strict=True):
        start, length = len(row.prompt) - 1, len(row.response)
        new = log_probs(now, [row]).values()[start : start + length]
        old = log_probs(then, [row]).values()[start : start + length].detach()
        ratio = (new - old)[given:].exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
        total, tokens = total - WEIGHT * new[:given].sum(), tokens + length
    return total / tokens


def test_a_mixed_group_by_hand(models: tuple[Any, Any]) -> None:
    rows = rollouts("a", [1.0, 0.0, 0.1, 1.0], given=3)
    models[0].zero_grad(set_to_none=True)
    wanted = by_hand(models, rows, 3)
    wanted.backward()
    expected = {k: v.grad.clone() for k, v in models[0].named_parameters() if v.grad is not None}
    (value,), found = loss(models, rows, "within_step", "token-mean")
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    same(found, expected)


def test_baselines_of_mixed_groups() -> None:
    rows = [*rollouts("a", [1.0, 0.0], given=2), *rollouts("a", [0.0, 0.0])]
    import verl_within_step

    group, alike = (advantages(rows, "within_step", baseline=name) for name in ("group", "alike"))
    assert (group[:2, :2] == WEIGHT * verl_within_step.MARK).all() and torch.equal(group[:2, :2], alike[:2, :2])
    assert group[0, 3] == pytest.approx((1 - 0.25) / 0.5, rel=1e-4), "one group of four"
    assert alike[0, 3] == pytest.approx(0.5 / 0.5**0.5, rel=1e-4) and (alike[2:] == 0).all(), "two of two"


# What verl must keep ------------------------------------------------------------------------------------------------

RELIED_UPON = {
    "verl.trainer.ppo.core_algos": (
        "agg_loss",
        "compute_grpo_outcome_advantage",
        "compute_policy_loss_vanilla",
        "register_adv_est",
        "register_policy_loss",
    ),
    "verl.trainer.ppo.ray_trainer": ("compute_advantage",),
    "verl.trainer.ppo.v1.utils": ("compute_advantage_for_multi_trajectories",),
    "verl.workers.utils.losses": ("ppo_loss",),
    "verl.workers.utils.padding": ("response_to_nested", "no_padding_2_padding"),
    "verl.trainer.ppo.padding_utils": ("construct_minimal_padding_template", "upsample_batch_to_divisible_size"),
    "verl.trainer.ppo.v1.trainer_base": (
        "PPOTrainer.fit",
        "PPOTrainer._build_replay_buffer",
        "PPOTrainer._load_checkpoint",
        "PPOTrainer._save_checkpoint",
        "PPOTrainer._get_required_batch_multiple",
        "PPOTrainer._compute_old_log_prob",
        "PPOTrainer._compute_ref_log_prob",
        "PPOTrainer._step_once",
        "PPOTrainer._balance_batch",
        "PPOTrainer._compute_advantage",
        "PPOTrainer._update_actor",
        "PPOTrainer._compute_metrics",
    ),
    "verl.trainer.ppo.v1.replay_buffer": (),
    "verl.trainer.ppo.v1.agent_loop_tq": (),
    "verl.experimental.agent_loop.single_turn_agent_loop": ("SingleTurnAgentLoop.run",),
    "verl.experimental.agent_loop.agent_loop": (
        "AgentLoopOutput.as_dict",
        "AgentLoopBase.ct_build_initial_tokens",
        "AgentLoopWorker._compute_score",
        "AgentLoopWorker._compute_multi_modal_inputs",
    ),
    "verl.models.transformers.qwen2_vl": ("_get_input_embeds",),
    "verl.utils.import_utils": ("load_extern_type",),
    "verl.utils.tensordict_utils": ("list_of_dict_to_tensordict",),
    "verl.workers.engine_workers": ("TrainingWorker.train_mini_batch",),
    "verl.workers.rollout.replica": ("TokenOutput",),
    "transfer_queue": ("KVBatchMeta", "kv_batch_get", "kv_batch_put", "kv_clear"),
    "verl.workers.engine.fsdp.transformer_impl": ("FSDPEngine.forward_backward_batch",),
}
"""Functions and classes (without any: the whole file) whose behaviour the plug-ins build on."""
DIGEST = "e5b7aa58eaa0fe04"
"""Of the sources above, in verl 0.9.1 and TransferQueue 0.1.11."""


def test_every_hook_of_the_plug_ins_is_watched() -> None:
    used = set()
    for file in PLUGINS.glob("verl_within_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("verl", "transfer_queue"):
                used |= {(node.module, name.name) for name in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tq":
                used.add(("transfer_queue", node.attr))
    assert ("transfer_queue", "kv_clear") in used and len(used) > 12
    for module, name in used:
        watched = RELIED_UPON.get(str(module))
        assert watched is not None and (not watched or any(one.split(".")[0] == name for one in watched)), (
            module,
            name,
        )


def test_verl_is_still_what_the_plug_ins_build_on() -> None:
    import importlib

    found = hashlib.sha256()
    for module, names in RELIED_UPON.items():
        loaded: Any = importlib.import_module(module)
        for name in names or ("",):
            part = functools.reduce(getattr, name.split("."), loaded) if name else loaded
            found.update(inspect.getsource(inspect.unwrap(part)).encode())
    assert found.hexdigest()[:16] == DIGEST, (
        "verl changed a function that launch/plugins/verl_within_*.py rely upon: read its new source (RELIED_UPON), run this "
        "file, then set DIGEST; a hook that became superfluous goes"
    )


def test_verl_has_no_such_thing_itself() -> None:
    from verl.trainer.ppo import core_algos

    names = {*core_algos.POLICY_LOSS_REGISTRY, *core_algos.ADV_ESTIMATOR_REGISTRY} - {"within_step"}
    own = [name for name in names if any(word in name for word in ("sft", "hybrid", "mix", "luffy", "demo"))]
    assert not own, f"verl has {own}: does it make launch/plugins/verl_within_step.py superfluous?"

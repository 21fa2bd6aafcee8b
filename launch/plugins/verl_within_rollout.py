"""Which rows and tokens of a step take SFT: verl's agent loop `within_step_agent`, and the replay buffer `WithinStep`.

Written for verl 0.9.1's V1 trainer with TransferQueue 0.1.11; no file of theirs is changed. The agent loop is named to verl
in prefix_agent.yaml, the buffer by trainer.v1.sampler.custom_sampler, its settings are sampler_kwargs. The losses are in
`verl_within_step`.

* interleaved: when all rollouts of a step are there, the buffer looks at each question's accuracy. At most `pass_rate` right
  (0: none), and the question's extra_info has a "trace": the trace takes the place of the first rollout, and verl's own
  empty padding rows that of the others. So a trace that is not needed costs nothing, nor does a rollout that takes no loss;
  without such a question the batch is plain GRPO's, byte for byte.
* progressive: rows whose extra_info has a "prefix" begin their response with it, with response_mask 0; the policy writes the
  rest. With "whole" the prefix is all of the trace, and nothing is generated; one such row of a question counts for all.

A custom sampler is given none of the settings of algorithm.filter_groups: the recipe refuses those.
"""

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
import verl_within_step
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import TokenOutput
from verl_prefix_rollout import prefix_of

FIELDS = ["uid", "responses", "response_mask", "rm_scores", "extra_fields", "extra_info"]


def trace_ids(tokenizer: Any, trace: str, room: int) -> list[int]:
    """Token ids of a whole response: the trace and its end of turn, no longer than `room`."""
    return [*tokenizer.encode(trace, add_special_tokens=False), tokenizer.eos_token_id][:room]


class _Given:
    """In the place of verl's server: "generates" what it was given."""

    def __init__(self, ids: list[int], step: int) -> None:
        self.ids, self.step = ids, step

    async def generate(self, **_: Any) -> TokenOutput:
        told = {"min_global_steps": self.step, "max_global_steps": self.step}
        return TokenOutput(token_ids=self.ids, log_probs=[0.0] * len(self.ids), num_preempted=0, extra_fields=told)


class WithinStepAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop, its response begun by the row's prefix. verl makes one instance per rollout."""

    _prefix: Sequence[int] = ()

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        info = _plain(kwargs.get("extra_info"))
        text = prefix_of(info, int(kwargs.get("session_id", 0)))
        whole = bool(text) and bool(info.get("whole"))
        if whole:
            ids = trace_ids(self.tokenizer, text, self.response_length)
            self.server_manager = _Given(ids, int(kwargs["global_steps"]) - 1)
        elif text:
            self._prefix = self.tokenizer.encode(text, add_special_tokens=False)
            room = self.response_length - len(self._prefix)
            if room < 1:
                raise ValueError(f"a prefix of {len(self._prefix)} tokens leaves no room for a response")
            sampling_params = {**sampling_params, "max_tokens": room}
        output = await super().run(sampling_params, priority=priority, **kwargs)
        if whole:
            output.response_mask = [0] * len(output.response_ids)
            output.reward_score = 0.0  # not judged: it is no response of the policy
            output.extra_fields["reward_extra_info"] = {}
        elif n := len(self._prefix):
            output.response_ids = [*output.prompt_ids[-n:], *output.response_ids]
            output.prompt_ids = output.prompt_ids[:-n]
            output.response_mask = [0] * n + output.response_mask
            if output.response_logprobs is not None:
                output.response_logprobs = [0.0] * n + output.response_logprobs
        # verl merges these fields into the reward function's extra_info, which judges prefix and continuation together:
        # here both are the response.
        output.extra_fields["prefix"] = ""
        return output

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of the prompt, and of the prefix that the policy continues."""
        return [*await super().ct_build_initial_tokens(*args, **kwargs), *self._prefix]


@dataclass(frozen=True)
class Row:
    """A rollout. acc: 0 or 1; None where it was not judged, or could not be. given: tokens of the trace at its beginning."""

    acc: float | None
    reward: float
    tokens: int
    given: int
    trace: bool

    @property
    def whole(self) -> bool:
        """A whole trace, of which the policy wrote nothing."""
        return self.given == self.tokens


def places(rows: Sequence[Row], pass_rate: float) -> list[str]:
    """What becomes of each row of a question: stay, sft (the whole trace), or blank (an empty row)."""
    judged = [row.acc for row in rows if row.acc is not None]
    if any(row.trace for row in rows) and judged and sum(judged) <= pass_rate * len(judged):
        return ["sft", *["blank"] * (len(rows) - 1)]
    whole = [i for i, row in enumerate(rows) if row.whole]
    return ["stay" if i not in whole else "sft" if i == whole[0] else "blank" for i in range(len(rows))]


def trace_row(row: Mapping[str, Any], ids: Sequence[int], copies: int) -> dict[str, Any]:
    """A rollout's fields in TransferQueue with the trace `ids` as its response: those that verl's padding rows replace.

    position_ids may be (tokens,) or mRoPE's (4, tokens); after the prompt all of them count on by one.
    """
    made = {k: v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for k, v in row.items()}
    prompts, responses = row["prompts"], torch.tensor(ids, dtype=torch.int64)
    at = row["position_ids"][..., : len(prompts)]
    made["position_ids"] = torch.cat([at, at[..., -1:] + torch.arange(1, len(ids) + 1)], dim=-1)
    nothing = torch.zeros(len(ids), dtype=torch.float32)
    return made | {
        "responses": responses,
        "input_ids": torch.cat([prompts, responses]),
        "response_mask": torch.zeros_like(responses),
        "loss_mask": torch.full_like(responses, copies),
        "rm_scores": nothing,
        "rollout_log_probs": nothing.clone(),
        "uid": verl_within_step.TRACE + uuid.uuid4().hex,
    }


class WithinStep(ReplayBuffer):
    """verl's replay buffer, which decides for a step's questions between RL and SFT. Logs `synergy/…` with verl's metrics.

    sampler_kwargs: poll (seconds), model (folder with the tokenizer), room (tokens of a response), pass_rate, copies.
    """

    def __init__(self, *args: Any, sampler_kwargs: Any, **kwargs: Any) -> None:
        super().__init__(*args, sampler_kwargs=sampler_kwargs, poll_interval=float(sampler_kwargs.poll), **kwargs)
        self.tokenizer = AutoTokenizer.from_pretrained(sampler_kwargs.model)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, float]]:
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "train":
            batch, ours = self.arrange(batch)
            metrics = {**metrics, **ours}
        return batch, metrics

    def arrange(self, batch: KVBatchMeta) -> tuple[KVBatchMeta, dict[str, float]]:
        """The batch with its SFT rows in place, and the step's figures, of all rollouts as they were generated."""
        told = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        rows = [_row(*values) for values in zip(*(list(told[name]) for name in FIELDS[1:]), strict=True)]
        groups: dict[str, list[int]] = {}
        for i, key in enumerate(batch.keys):
            groups.setdefault(key.rsplit("_", 2)[0], []).append(i)
        keys, tags, zero = list(batch.keys), list(batch.tags), list[bool]()
        sft_tokens = {"sft": 0, "given": 0}
        for members in groups.values():
            fates = places([rows[i] for i in members], float(self.sampler_kwargs.pass_rate))
            judged = [rows[i].acc for i in members if rows[i].acc is not None]
            zero += [not any(judged)] if judged else []
            sft_tokens["sft"] += self._replace(batch, members, fates, keys, tags)
        begun = [i for i, key in enumerate(keys) if key == batch.keys[i] and rows[i].given]
        if begun:  # verl's loss_mask is its response_mask; here it counts the tokens that have a loss
            masks = [torch.ones(rows[i].tokens, dtype=torch.int64) for i in begun]
            fields = list_of_dict_to_tensordict([{"loss_mask": mask} for mask in masks])
            tq.kv_batch_put(keys=[keys[i] for i in begun], partition_id=batch.partition_id, fields=fields)
            sft_tokens["given"] = sum(rows[i].given for i in begun)
        arranged = KVBatchMeta(
            partition_id=batch.partition_id, keys=keys, tags=tags, fields=batch.fields, extra_info=batch.extra_info
        )
        spent = sum(tag["seq_len"] for tag in tags)
        on_sft = sum(
            tag["seq_len"] for key, tag in zip(keys, tags, strict=True) if key.startswith(verl_within_step.TRACE)
        )
        empty = sum(tag["seq_len"] for key, tag in zip(keys, tags, strict=True) if key.startswith("pad"))
        return arranged, {
            **figures(rows),
            **({"synergy/zero_pass": sum(zero) / len(zero)} if zero else {}),
            "synergy/sft_tokens": float(sum(sft_tokens.values())),
            "synergy/actor_tokens": float(spent),
            "synergy/sft_share": on_sft / spent,
            "synergy/empty_share": empty / spent,
        }

    def _replace(
        self, batch: KVBatchMeta, members: Sequence[int], fates: Sequence[str], keys: list[str], tags: list[Any]
    ) -> int:
        """Puts new rows in the place of those that don't stay, in the queue, in `keys` and in `tags`; the SFT tokens."""
        gone = [i for i, fate in zip(members, fates, strict=True) if fate != "stay"]
        if not gone:
            return 0
        where = {"partition_id": batch.partition_id}
        first = next(i for i, fate in zip(members, fates, strict=True) if fate == "sft")
        stored = tq.kv_batch_get(keys=[batch.keys[first]], **where)[0]
        source = {name: stored[name] for name in stored.keys()}  # noqa: SIM118 - a TensorDict iterates over its rows
        ids = source["responses"].tolist()
        if source["response_mask"].any():  # else it is the agent loop's whole trace
            ids = trace_ids(self.tokenizer, _plain(source["extra_info"])["trace"], int(self.sampler_kwargs.room))
        trace = trace_row(source, ids, int(self.sampler_kwargs.copies))
        empty, _ = construct_minimal_padding_template(source, batch.tags[first], self.tokenizer.eos_token_id)
        empty["uid"] = f"pad{uuid.uuid4().hex}"
        made, new_tags = list[dict[str, Any]](), list[Any]()
        for i in gone:
            fields = trace if i == first else empty
            response, prompt = len(fields["responses"]), len(fields["prompts"])
            lengths = {"prompt_len": prompt, "response_len": response, "seq_len": prompt + response}
            tag = {**copy.deepcopy(batch.tags[i]), **lengths, "is_padding": True}  # of no rollout, for verl's metrics
            keys[i], tags[i] = f"{fields['uid']}_{len(made)}_0", tag
            made.append(copy.deepcopy(fields))
            new_tags.append(tag)
        new = [keys[i] for i in gone]
        tq.kv_batch_put(keys=new, fields=list_of_dict_to_tensordict(made), tags=new_tags, **where)
        tq.kv_clear(keys=[batch.keys[i] for i in gone], **where)
        return len(ids)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the step's rollouts: reward, accuracy and length of what the policy wrote, and the share of prefixes."""
    own = [row for row in rows if not row.whole]
    found = {"synergy/prefix": sum(row.given > 0 for row in rows) / len(rows)}
    parts = {"": own, "_begun": [row for row in own if row.given], "_free": [row for row in own if not row.given]}
    for name, part in parts.items():
        if part:
            found[f"synergy/reward{name}"] = sum(row.reward for row in part) / len(part)
            found[f"synergy/length{name}"] = sum(row.tokens - row.given for row in part) / len(part)
    return found


def _row(responses: Any, mask: Any, scores: Any, extra: Any, info: Any) -> Row:
    told = _plain(extra).get("reward_extra_info") or {}
    acc = None if told.get("broken") or "acc" not in told else float(told["acc"] > 0.5)
    own = mask.nonzero()
    given = int(own[0]) if len(own) else len(mask)
    return Row(acc, float(scores.sum()), len(responses), given, bool(_plain(info).get("trace")))


def _plain(value: Any) -> dict[str, Any]:
    """A dict that TransferQueue may have wrapped."""
    found = getattr(value, "data", value)
    return found if isinstance(found, dict) else {}

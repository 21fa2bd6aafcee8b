"""Which rows of a step take SFT: verl's replay buffer `WithinStep`.

Written for verl 0.9.1's V1 trainer with TransferQueue 0.1.11; no file of theirs is changed. Named to verl by
trainer.v1.sampler.custom_sampler, its settings are sampler_kwargs. A custom sampler is given none of the settings of
algorithm.filter_groups: the recipe refuses those.

* interleaved: when all rollouts of a step are there, the buffer looks at each question's accuracy. At most `pass_rate` right
  (0: none), and the question's extra_info has a "trace": the trace takes the place of the first rollout, and empty rows that
  of the others. So a trace that is not needed costs nothing, and a rollout that takes no loss next to nothing; without such a
  question the batch is plain GRPO's, byte for byte.
* interleaved with `buffer`: such a question's rows are all empty, its trace waits (`verl_within_delay`) until so many do, and
  those take empty rows of the step in which the last of them was found.
* interleaved with `every`: each question's rollouts stay, and its trace is one row more. verl's rollout.n counts that row, so
  that its mini-batches are made of as many questions; the data's column __rollout_n__ says how many are generated.
* progressive: of a question's rows that are the whole trace (`verl_within_rollout`) one counts for all.
"""

import copy
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
import verl_within_step
from transfer_queue import KVBatchMeta
from transformers import AutoConfig, AutoTokenizer
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl_within_delay import Waiting
from verl_within_rollout import plain, trace_ids

FIELDS = ["responses", "response_mask", "rm_scores", "extra_fields", "extra_info"]
EMPTY = "pad"
"""Begins the uid of an empty row, as of verl's own."""
EMPTY_TOKENS = 8
"""Of an empty row, where verl's own have 128."""
GRID = (1, 4, 4)
"""Patches of its picture, as many as verl adds to a micro-batch that has none."""


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


def failed(rows: Sequence[Row], pass_rate: float) -> bool:
    """Whether a question takes SFT on its trace in the place of its rollouts."""
    judged = [row.acc for row in rows if row.acc is not None]
    return any(row.trace for row in rows) and bool(judged) and sum(judged) <= pass_rate * len(judged)


def places(rows: Sequence[Row], pass_rate: float) -> list[str]:
    """What becomes of each row of a question: stay, sft (the whole trace), or blank (an empty row)."""
    if failed(rows, pass_rate):
        return ["sft", *["blank"] * (len(rows) - 1)]
    whole = [i for i, row in enumerate(rows) if row.whole]
    return ["stay" if i not in whole else "sft" if i == whole[0] else "blank" for i in range(len(rows))]


def spread(free: Sequence[int], count: int) -> list[int]:
    """`count` of the free places, evenly, so that no mini-batch has all the traces."""
    return [free[at * len(free) // count] for at in range(count)]


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


def empty_row(row: Mapping[str, Any], tag: Mapping[str, Any], eos: int, config: Any) -> dict[str, Any]:
    """A row that takes no loss: verl's own, but short and, where rollouts have pictures, with a black one. A micro-batch with
    none fails in verl 0.9.1 (models/transformers/qwen2_vl.py, _get_input_embeds) with transformers 5. config: the model's."""
    made, _ = construct_minimal_padding_template(row, tag, eos)
    for name in ("prompts", "input_ids", "attention_mask", "position_ids"):
        made[name] = made[name][..., : EMPTY_TOKENS - (name == "prompts")].clone()
    pictures = plain(row.get("multi_modal_inputs"))
    if "pixel_values" in pictures:
        patches = math.prod(GRID)
        for name in ("prompts", "input_ids"):
            made[name][: patches // config.vision_config.spatial_merge_size**2] = config.image_token_id
        black = {
            "pixel_values": pictures["pixel_values"].new_zeros(patches, pictures["pixel_values"].shape[1]),
            "image_grid_thw": torch.tensor([GRID]),
            "images_seqlens": torch.tensor([patches]),
        }
        made["multi_modal_inputs"] = {name: black[name] for name in pictures if name in black}
    return {**made, "uid": f"{EMPTY}{uuid.uuid4().hex}"}


class WithinStep(ReplayBuffer):
    """verl's replay buffer, which decides for a step's questions between RL and SFT. Logs `synergy/…` with verl's metrics.

    sampler_kwargs: poll (seconds), model (folder with the tokenizer), room (tokens of a response), pass_rate, copies; where
    they are set, every (true), buffer (traces) and waiting (its folder, beside verl's checkpoints).
    """

    waiting: Waiting | None = None

    def __init__(self, *args: Any, sampler_kwargs: Any, **kwargs: Any) -> None:
        super().__init__(*args, sampler_kwargs=sampler_kwargs, poll_interval=float(sampler_kwargs.poll), **kwargs)
        self.tokenizer = AutoTokenizer.from_pretrained(sampler_kwargs.model)
        self.config = AutoConfig.from_pretrained(sampler_kwargs.model)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, float]]:
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "train":
            batch, ours = self.arrange(batch, global_steps)
            metrics = {**metrics, **ours}
        return batch, metrics

    def arrange(self, batch: KVBatchMeta, step: int) -> tuple[KVBatchMeta, dict[str, float]]:
        """The batch with its SFT rows in place, and the step's figures, of all rollouts as they were generated."""
        told, size = self.sampler_kwargs, int(self.sampler_kwargs.get("buffer", 0))
        if size and self.waiting is None:
            self.waiting = Waiting(Path(told.waiting), step - 1)
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        rows = [_row(*values) for values in zip(*(list(stored[name]) for name in FIELDS), strict=True)]
        groups: dict[str, list[int]] = {}
        for i, key in enumerate(batch.keys):
            groups.setdefault(key.rsplit("_", 2)[0], []).append(i)
        made, zero = _Made(batch, self.tokenizer, self.config, int(told.room), int(told.copies)), list[bool]()
        for members in groups.values():
            seen = [rows[i] for i in members]
            zero += [not any(row.acc for row in seen)] if any(row.acc is not None for row in seen) else []
            if told.get("every"):
                made.add(members, seen[0].trace)
            elif size and failed(seen, float(told.pass_rate)):
                self.waiting.add(step, made.trace_of(members[0]))  # type: ignore[union-attr]
                made.replace(members, ["blank"] * len(members))
            else:
                made.replace(members, places(seen, float(told.pass_rate)))
        if self.waiting is not None:
            free = sorted(made.at)
            if len(self.waiting) >= size or len(free) == len(rows):  # a step without any loss would be none
                taken = self.waiting.take(len(free))
                made.fill(spread(free, len(taken)), taken)
            self.waiting.save(step)
        given = [i for i in range(len(rows)) if i not in made.at and rows[i].given]
        if given:  # verl's loss_mask is its response_mask; here it counts the tokens that have a loss
            masks = [torch.ones(rows[i].tokens, dtype=torch.int64) for i in given]
            fields = list_of_dict_to_tensordict([{"loss_mask": mask} for mask in masks])
            tq.kv_batch_put(keys=[batch.keys[i] for i in given], partition_id=batch.partition_id, fields=fields)
        arranged, ours = made.arranged()
        begun_tokens = sum(rows[i].given for i in given)
        return arranged, {
            **figures(rows),
            **({"synergy/zero_pass": sum(zero) / len(zero)} if zero else {}),
            **({"synergy/sft_waiting": float(len(self.waiting))} if self.waiting is not None else {}),
            **ours,
            "synergy/sft_tokens": ours["synergy/sft_tokens"] + begun_tokens,
        }


class _Made:
    """The new rows of a batch: `at` their place in the place of a rollout, or `after` one."""

    def __init__(self, batch: KVBatchMeta, tokenizer: Any, config: Any, room: int, copies: int) -> None:
        self.batch, self.tokenizer, self.config, self.room, self.copies = batch, tokenizer, config, room, copies
        self.at, self.after = dict[int, tuple[str, Any]](), dict[int, tuple[str, Any]]()

    def _source(self, place: int) -> dict[str, Any]:
        found = tq.kv_batch_get(keys=[self.batch.keys[place]], partition_id=self.batch.partition_id)[0]
        return {name: found[name] for name in found.keys()}  # noqa: SIM118 - a TensorDict iterates over its rows

    def trace_of(self, place: int) -> dict[str, Any]:
        """The fields of the whole trace of a rollout's question."""
        source = self._source(place)
        ids = source["responses"].tolist()
        if source["response_mask"].any():  # else it is the agent loop's whole trace
            ids = trace_ids(self.tokenizer, plain(source["extra_info"])["trace"], self.room)
        return trace_row(source, ids, self.copies)

    def _empty(self, place: int) -> dict[str, Any]:
        return empty_row(self._source(place), self.batch.tags[place], self.tokenizer.eos_token_id, self.config)

    def replace(self, members: Sequence[int], fates: Sequence[str]) -> None:
        """New rows in the place of those of a question that don't stay."""
        gone = {i: fate for i, fate in zip(members, fates, strict=True) if fate != "stay"}
        if not gone:
            return
        empty = self._empty(members[0])
        self._put(self.at, {i: self.trace_of(i) if fate == "sft" else empty for i, fate in gone.items()})
        tq.kv_clear(keys=[self.batch.keys[i] for i in gone], partition_id=self.batch.partition_id)

    def add(self, members: Sequence[int], trace: bool) -> None:
        """A row more: the question's trace, or an empty one."""
        self._put(self.after, {members[-1]: self.trace_of(members[0]) if trace else self._empty(members[0])})

    def fill(self, places: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
        """Traces in the place of empty rows."""
        if places:
            gone = [self.at[place][0] for place in places]
            for place, row in zip(places, rows, strict=True):
                self._put(self.at, {place: row})
            tq.kv_clear(keys=gone, partition_id=self.batch.partition_id)

    def _put(self, where: dict[int, tuple[str, Any]], rows: Mapping[int, Mapping[str, Any]]) -> None:
        keys, tags = list[str](), list[Any]()
        for number, (place, fields) in enumerate(rows.items()):
            response, prompt = len(fields["responses"]), len(fields["prompts"])
            lengths = {"prompt_len": prompt, "response_len": response, "seq_len": prompt + response}
            # Not of a rollout, for verl's metrics.
            tags.append({**copy.deepcopy(self.batch.tags[place]), **lengths, "is_padding": True})
            keys.append(f"{fields['uid']}_{number}_0")
            where[place] = keys[-1], tags[-1]
        fields = list_of_dict_to_tensordict([copy.deepcopy(dict(row)) for row in rows.values()])
        tq.kv_batch_put(keys=keys, fields=fields, tags=tags, partition_id=self.batch.partition_id)

    def arranged(self) -> tuple[KVBatchMeta, dict[str, float]]:
        """The whole batch, and its figures."""
        pairs = list[tuple[str, Any]]()
        for i, pair in enumerate(zip(self.batch.keys, self.batch.tags, strict=True)):
            pairs += [self.at.get(i, pair), *([self.after[i]] if i in self.after else [])]
        traces = {key: tag for key, tag in pairs if key.startswith(verl_within_step.TRACE)}
        empty = [tag for key, tag in pairs if key.startswith(EMPTY)]
        if all(tag.get("is_padding") for _, tag in pairs):  # verl's metrics need a row
            for tag in traces.values():
                tag["is_padding"] = False
            tq.kv_batch_put(keys=list(traces), tags=list(traces.values()), partition_id=self.batch.partition_id)
        spent = sum(tag["seq_len"] for _, tag in pairs)
        whole = KVBatchMeta(
            partition_id=self.batch.partition_id,
            keys=[key for key, _ in pairs],
            tags=[tag for _, tag in pairs],
            fields=self.batch.fields,
            extra_info=self.batch.extra_info,
        )
        return whole, {
            "synergy/sft_tokens": float(sum(tag["response_len"] for tag in traces.values())),
            "synergy/sft_traces": float(len(traces)),
            "synergy/actor_tokens": float(spent),
            "synergy/sft_share": sum(tag["seq_len"] for tag in traces.values()) / spent,
            "synergy/empty_share": sum(tag["seq_len"] for tag in empty) / spent,
        }


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
    told = plain(extra).get("reward_extra_info") or {}
    acc = None if told.get("broken") or "acc" not in told else float(told["acc"] > 0.5)
    own = mask.nonzero()
    given = int(own[0]) if len(own) else len(mask)
    return Row(acc, float(scores.sum()), len(responses), given, bool(plain(info).get("trace")))

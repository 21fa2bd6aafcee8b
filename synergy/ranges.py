"""What values may be: numbers of our own keys, which the dataclasses of config and recipes tell with their fields, and a few
keys of the frameworks that we compute with. All else of the frameworks is checked by them, or by their schema.

``check`` looks at both as soon as a config is composed, so that a value which can't be is one message before any work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from synergy.errors import UserError, near

if TYPE_CHECKING:
    from synergy.config import Config

LARGEST_SEED = 2**31 - 1
"""That all of the frameworks take."""


@dataclass(frozen=True)
class Range:
    """least, most: the ends, which belong to it, but for ``least`` where it is ``above`` that; whole: without fractions. Of a
    field that is a mapping, each value lies in it."""

    least: float
    most: float = math.inf
    above: bool = False
    whole: bool = True
    null: bool = False

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return value is None and self.null
        return math.isfinite(value) and self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        ends = f"above {self.least:g} and up" if self.above else f"from {self.least:g}"
        ends = f"{ends} to {self.most:.10g}" if self.most < math.inf else ends.removesuffix(" and up")
        return f"a {'whole ' * self.whole}number {ends}{', or null,' * self.null} is wanted"


@dataclass(frozen=True)
class Kind:
    """A value that is no number."""

    type: type
    name: str
    null: bool = False

    def holds(self, value: Any) -> bool:
        return isinstance(value, self.type) or (value is None and self.null)

    def __str__(self) -> str:
        return f"{self.name}{', or null,' * self.null} is wanted"


def number(default: Any, least: float, most: float = math.inf, above: bool = False) -> Any:
    """A field of a config's dataclass with what it may be beside its type."""
    return field(default=default, metadata={"range": Range(least, most, above, whole=False, null=default is None)})


COUNT, SOME = Range(1), Range(1, null=True)
ABOVE = Range(0, above=True, whole=False)
SECTION, MAYBE = Kind(Mapping, "a section of keys"), Kind(Mapping, "a section of keys", null=True)
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SFT: dict[str, Range | Kind] = {
    "learning_rate": ABOVE,
    "num_train_epochs": ABOVE,
    "max_steps": Range(-1),
    "warmup_steps": Range(0, whole=False),
    "warmup_ratio": Range(0, 1, whole=False, null=True),
    "cutoff_len": COUNT,
    "per_device_train_batch_size": SOME,
    "gradient_accumulation_steps": COUNT,
    "preprocessing_num_workers": SOME,
    "save_total_limit": SOME,
}
VERL: dict[str, Range | Kind] = {
    **dict.fromkeys(("data", "algorithm", "trainer", ACTOR, ROLLOUT, "reward", "ray_kwargs.ray_init"), SECTION),
    **{f"algorithm.{name}": MAYBE for name in ("filter_groups", "rollout_correction")},
    **dict.fromkeys((f"{ACTOR}.policy_loss", f"{ROLLOUT}.agent", "trainer.v1", "trainer.v1.sampler"), MAYBE),
    **dict.fromkeys(("trainer.v1.sampler.custom_sampler", "reward.custom_reward_function.reward_kwargs"), MAYBE),
    "data.train_batch_size": COUNT,
    "data.max_prompt_length": COUNT,
    f"{ROLLOUT}.n": COUNT,
    f"{ROLLOUT}.gpu_memory_utilization": Range(0, 1, above=True, whole=False),
    **{f"{ACTOR}.ppo_{name}_per_gpu": SOME for name in ("max_token_len", "micro_batch_size")},
    **{f"{ACTOR}.{part}ulysses_sequence_parallel_size": SOME for part in ("", "fsdp_config.")},
    "critic.ppo_infer_max_token_len_per_gpu": SOME,
    **{f"actor_rollout_ref.{role}.log_prob_max_token_len_per_gpu": COUNT for role in ("rollout", "ref")},
    **{f"{role}.optim.lr_warmup_steps": Range(-1, null=True) for role in (ACTOR, "critic")},
    f"{ACTOR}.checkpoint.save_contents": Kind(list, "a list"),
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.save_freq": Range(-1),
    "trainer.max_actor_ckpt_to_keep": SOME,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": SOME,
}
NATIVE: dict[str, Range | Kind] = {
    **{f"sft.config.{key}": wanted for key, wanted in SFT.items()},
    **{f"rl.{part}.{key}": wanted for part in ("verl", "verl_add") for key, wanted in VERL.items()},
}
"""The frameworks' keys that we compute with; what may be null has a rule or a default here."""
NEEDED = (
    "sft.config.learning_rate",
    *(f"rl.verl.{key}" for key in ("data.train_batch_size", "data.max_prompt_length", f"{ROLLOUT}.n")),
)
"""Those of them that must be there."""


def check(cfg: Config) -> None:
    """Raises UserError for a key of ours that is not there, and for a value that can't be."""
    ours(cfg)
    if not cfg.run.dir.strip() or "://" in cfg.run.dir:
        raise UserError(f"run.dir={cfg.run.dir}: run.dir is a local folder; a URL belongs to run.store")
    native = {"sft": {"config": cfg.sft.config}, "rl": {"verl": cfg.rl.verl, "verl_add": cfg.rl.verl_add}}
    for key, wanted in NATIVE.items():
        _native(native, key, wanted)


def ours(made: Any, at: str = "") -> None:
    """The same for a config's dataclass and those within it. at: where it stands, ending with a dot."""
    known = {item.name: item.metadata for item in fields(made)}
    for name, value in vars(made).items():
        key = f"{at}{name}"
        if name not in known:
            raise UserError(unknown(key, known))
        within = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for place, one in ((key, value), *((f"{key}.{inner}", one) for inner, one in within)):
            if is_dataclass(one):
                ours(one, f"{place}.")
            elif (wanted := known[name].get("range")) and not isinstance(one, dict):
                _hold(place, one, wanted)


def unknown(key: str, known: Iterable[str]) -> str:
    """The message for a key of ours that is not there, where the known names are."""
    above, dot, name = key.rpartition(".")
    return f"{key}: there is no such key{near(name, known, above + dot)}"


def _native(tree: Mapping[str, Any], key: str, wanted: Range | Kind) -> None:
    found: Any = tree
    names = key.split(".")
    for number, name in enumerate(names):
        _hold(".".join(names[:number]), found, SECTION)
        if name not in found:
            if key in NEEDED:
                raise UserError(f"{key} is missing: {wanted}")
            return
        found = found[name]
    _hold(key, found, wanted)


def _hold(key: str, value: Any, wanted: Range | Kind) -> None:
    if not wanted.holds(value):
        raise UserError(f"{key}={json.dumps(value) if value is None or isinstance(value, bool) else value}: {wanted}")

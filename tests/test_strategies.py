"""Strategies are pure functions of the config: what they plan, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from synergy import paths, strategies
from synergy.config import Config
from synergy.data import rounds
from synergy.errors import UserError
from synergy.stages import KINDS, Stage
from synergy.strategies.progressive import SCHEDULES, prefix_share

RECIPES = sorted(file.stem for file in (paths.ROOT / "recipes" / "recipe").glob("*.yaml"))


def config(recipe: str, *overrides: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(paths.ROOT / "recipes"), version_base="1.3"):
        cfg = compose("config", [f"recipe={recipe}", *overrides])
    made = OmegaConf.to_object(cfg)
    assert isinstance(made, Config)
    return made


def plan(recipe: str, *overrides: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in strategies.stages(config(recipe, *overrides))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_ends_with_an_evaluation(recipe: str) -> None:
    planned = strategies.stages(config(recipe))
    assert planned[-1].kind == "evaluate"
    assert {stage.kind for stage in planned} <= set(KINDS)
    assert all(stage.note for stage in planned)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scale", ["qwen2_5_vl_3b", "qwen2_5_vl_7b"])
def test_every_recipe_composes_at_the_papers_scales(recipe: str, scale: str) -> None:
    bench = "evaluate.benchmarks=[{name: B, records: b.jsonl, kind: open}]"
    cfg = config(recipe, f"scale={scale}", "data.source=/data", "model.revision=" + "0" * 40, bench)
    assert strategies.stages(cfg)
    if recipe == "rl":
        rl = next(stage for stage in strategies.stages(cfg) if stage.kind == "rl")
        actor = rl.settings["verl"]["actor_rollout_ref"]["actor"]
        assert (actor["optim"]["lr"], actor["kl_loss_coef"], rl.settings["max_response_length"]) == (1e-6, 0.005, 4096)


def test_recipes_share_their_stages() -> None:
    sft, two_stage = plan("sft"), plan("two_stage")
    assert sft.items() <= two_stage.items()
    assert plan("base").items() <= plan("progressive").items()


def test_two_stage_has_more_room_to_think() -> None:
    stages = plan("two_stage", "lengths.rl=64", "lengths.rl_after_sft=96")
    assert stages["two_stage"].settings["max_response_length"] == 96
    assert stages["two_stage"].inputs["model"] == "sft"


def test_progressive_goes_from_whole_traces_over_a_prefix_to_none() -> None:
    stages = plan("progressive", "recipe.rounds=4")
    shares = [stages[f"mix-{n}"].settings["prefix"] for n in (1, 2, 3, 4)]
    assert shares == [1.0, 0.6667, 0.3333, 0.0]
    assert "sft-4" not in stages
    assert [stages[f"sft-{n}"].settings["open_ended"] for n in (1, 2, 3)] == [False, True, True]
    assert all(stages[f"sft-{n}"].settings["weight"] == 0.2 for n in (1, 2, 3))
    assert stages["mix-3"].inputs["passes_2"] == "rl-2", "pass counts come from the rollouts of the round before"
    assert stages["rl-4"].inputs["model"] == "rl-3"


@pytest.mark.parametrize("override", ["recipe.rounds=1", "recipe.schedule=sudden", "recipe.prefix_unit=words"])
def test_impossible_knobs_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"recipe\."):
        plan("progressive", override)


def test_unknown_knob_of_a_strategy_is_refused() -> None:
    with pytest.raises(UserError, match="round"):
        plan("progressive", "+recipe.round=3")


@given(st.sampled_from(SCHEDULES), st.integers(2, 12))
def test_schedules_fall_from_all_to_nothing(schedule: str, count: int) -> None:
    shares = [prefix_share(schedule, i, count) for i in range(count)]
    assert shares[0] == 1 and shares[-1] == 0
    assert shares == sorted(shares, reverse=True)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), st.integers(1, 16), st.integers(0, 5))
def test_rounds_cut_the_order_into_whole_batches_without_loss(
    questions: int, epochs: int, count: int, batch: int, seed: int
) -> None:
    total = questions * epochs
    whole = rounds.order(questions, total, seed)
    parts = [whole[rounds.cut(total, i, count, batch)] for i in range(count)]
    joined = [index for part in parts for index in part]
    if total >= batch:
        assert joined == whole[: total // batch * batch]
        assert all(len(part) % batch == 0 for part in parts)
    seen = [whole.count(i) for i in range(questions)]
    assert max(seen) - min(seen) == 0, "every question is seen as often as any other"


class _Words:
    """A tokenizer of one token per word, by its offsets."""

    offsets: Sequence[tuple[int, int]] = ()

    def encode(self, text: str, add_special_tokens: bool) -> _Words:
        import re

        found = _Words()
        found.offsets = [m.span() for m in re.finditer(r"\s*\S+", text)]
        return found


@given(st.text("ab. \n", min_size=1, max_size=60), st.floats(0.01, 1.0), st.sampled_from(["tokens", "sentences"]))
def test_prefixes_are_beginnings_that_grow_to_the_whole(text: str, share: float, unit: str) -> None:
    text = text.strip() or "a"
    part = rounds.prefix(text, share, unit, _Words())
    assert text.startswith(part) and part
    assert rounds.prefix(text, 1.0, unit, _Words()) == text

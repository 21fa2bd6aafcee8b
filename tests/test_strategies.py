"""Strategies are pure functions of the config: what they plan, and what they refuse."""

from __future__ import annotations

from collections import Counter
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

FOLDER = paths.ROOT / "recipes" / "recipe"
RECIPES = sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml"))


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
    assert planned[-1].kind == "evaluate" or recipe in ("tag", "distill")
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


def test_tag_runs_the_base_model_16_times_as_an_evaluation_would() -> None:
    stages = plan("tag")
    runs, evaluation = stages["runs"].settings, plan("base")["eval-base"].settings
    assert (runs["n"], runs["instruction"], runs["sampling"]) == (16, None, evaluation["sampling"])
    assert runs["seed"] not in range(100), "not the seed of an evaluation"
    assert plan("tag", "recipe.instructed=true")["runs"].settings["instruction"]


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


def test_interleaved_takes_turns_and_shares_its_first_counts() -> None:
    stages = plan("interleaved", "recipe.rounds=2")
    assert list(stages)[-7:] == ["mix-1", "sft-1", "rl-1", "mix-2", "sft-2", "rl-2", "eval-rl-2"]
    assert stages["mix-2"].inputs["passes_1"] == "rl-1" and stages["mix-2"].inputs["carry"] == "mix-1"
    assert [stages[name].inputs["model"] for name in ("sft-1", "rl-1", "sft-2", "rl-2")] == [
        "base",
        "sft-1",
        "rl-1",
        "sft-2",
    ]
    shared = plan("progressive")
    assert stages["passes"] == shared["passes"] and stages["order"] == plan("rl")["order"]


def test_interleaved_without_sampling_begins_with_rl_alone() -> None:
    stages = plan("interleaved", "recipe.sample_first=false")
    assert "passes" not in stages and "sft-1" not in stages and stages["rl-1"].inputs["model"] == "base"
    assert stages["mix-2"].inputs["passes_0"] == "rl-1" and stages["sft-2"].inputs["model"] == "rl-1"
    everything = plan("interleaved", "recipe.sample_first=false", "recipe.sft_on=all", "recipe.rounds=1")
    assert everything["sft-1"].inputs["model"] == "base" and everything["mix-1"].settings["sft_on"] == "all"


def test_data_mixing_trains_the_base_on_what_the_rl_model_gets_right() -> None:
    stages = plan("data_mixing")
    assert stages["responses"].inputs == {"model": "rl", "data": "data", "order": "data"}
    assert stages["data_mixing"].inputs["model"] == "base" and stages["data_mixing"].inputs["data"] == "mixture"
    assert stages["data_mixing"].settings["config"]["num_train_epochs"] == 2.0
    assert stages["rl"] == plan("rl")["rl"], "the RL model is made once"


def test_model_merging_sweeps_between_two_shared_parents() -> None:
    stages = plan("model_merging")
    merges = {name: stage.settings["ratio"] for name, stage in stages.items() if stage.kind == "merge"}
    assert merges == {"merge-0.25": 0.25, "merge-0.5": 0.5, "merge-0.75": 0.75}
    assert stages["sft"] == plan("sft")["sft"] and stages["rl"] == plan("rl")["rl"]
    assert {"eval-sft", "eval-rl"} <= set(stages), "ratios 1 and 0"
    assert list(stages)[-1] == "eval-merge-0.25", "the reported ratio is the recipe's result"
    two = plan("model_merging", "recipe.ratios=[0.5]", "recipe.reported=0.5")
    assert "eval-sft" not in two and "eval-merge-0.5" in two


def test_ablations_change_what_they_name_and_nothing_else() -> None:
    actor = plan("ablation/rl_kl_0")["rl"].settings["verl"]["actor_rollout_ref"]["actor"]
    usual = plan("rl")["rl"].settings["verl"]["actor_rollout_ref"]["actor"]
    assert actor == {**usual, "kl_loss_coef": 0.0}
    for name, mode in (("token_mean", "token-mean"), ("sequence_mean", "seq-mean-token-mean")):
        actor = plan(f"ablation/rl_{name}")["rl"].settings["verl"]["actor_rollout_ref"]["actor"]
        assert actor == {**usual, "loss_agg_mode": mode}
    for size in (4, 8, 16):
        assert plan(f"ablation/two_stage_{size}k")["two_stage"].settings["max_response_length"] == size * 1024
    assert plan("ablation/two_stage_1_epoch")["sft"].settings["config"]["num_train_epochs"] == 1
    assert plan("ablation/interleaved_sft_on_all")["mix-1"].settings["sft_on"] == "all"
    easy = plan("ablation/rl_without_easiest")
    assert easy["order"].inputs["passes_0"] == "passes" and easy["passes"].inputs["model"] == "base"


@pytest.mark.parametrize(
    ("recipe", "overrides", "told"),
    [
        ("model_merging", ["recipe.ratios=[0.25,1.5]"], "from 0 to 1"),
        ("model_merging", ["recipe.ratios=[0.5]"], r"recipe\.reported"),
        ("model_merging", ["recipe.ratios=[0.5,0.50000001]"], "two of them are equal to six digits"),
        ("model_merging", ["recipe.method=average"], "one of: linear"),
        ("model_merging", ["recipe.method=ties"], "density"),
        ("interleaved", ["recipe.rounds=0"], "a round or more"),
        ("interleaved", ["recipe.sft_on=some"], "zero_pass, all"),
        ("interleaved", ["recipe.rounds=1", "recipe.sample_first=false"], "recipe=rl"),
        ("interleaved", ["recipe.sft_epochs=0"], "epoch"),
        ("interleaved", ["recipe.rounds=19"], r"budget\.rl_steps=18"),
        ("progressive", ["recipe.rounds=19"], r"budget\.rl_steps=18"),
        ("data_mixing", ["recipe.epochs=0"], "epoch"),
        ("progressive", ["recipe.rounds=two"], r"^recipe\.rounds .*'two'"),
        ("model_merging", ["recipe.ratios=0.5"], r"^recipe\.ratios "),
        ("progressive", ["recipe.sft_weight=-1"], r"^recipe\.sft_weight=-1"),
        ("progressive", ["recipe.prefix_rollouts=-1"], r"^recipe\.prefix_rollouts=-1"),
        ("tag", ["recipe.seed=-1"], r"^recipe\.seed=-1"),
        ("interleaved", ["recipe.sft_buffer=64"], r"recipe\.sft_buffer=64 needs recipe\.granularity=step"),
        ("interleaved", ["recipe.pass_rate=0.5"], r"recipe\.pass_rate=0\.5 needs recipe\.granularity=step"),
        ("interleaved", ["recipe.trace_counts=one"], r"recipe\.trace_counts=one needs recipe\.granularity=step"),
        ("progressive", ["recipe.baseline=alike"], r"recipe\.baseline=alike needs recipe\.granularity=step"),
        *(
            (
                recipe,
                ["recipe.granularity=step", "recipe.rounds=4"],
                r"recipe\.rounds=4 needs recipe\.granularity=round",
            )
            for recipe in ("interleaved", "progressive")
        ),
        ("interleaved", ["recipe.granularity=step", "recipe.sft_epochs=2"], r"recipe\.sft_epochs=2\.0 needs"),
        ("interleaved", ["recipe.granularity=step", "recipe.sample_first=false"], r"recipe\.sample_first=False needs"),
        ("base", ["evaluate.benchmarks.0.kind=chioce"], r"kind=chioce is one of open, .*did you mean choice\?"),
    ],
)
def test_knobs_that_cannot_work_are_refused_before_anything_runs(recipe: str, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan(recipe, *overrides)


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


@given(st.data(), st.integers(1, 60), st.integers(1, 4), st.integers(1, 6), st.integers(1, 12), st.integers(0, 5))
def test_every_question_is_seen_as_often_as_in_plain_rl(
    data: st.DataObject, questions: int, epochs: int, count: int, batch: int, seed: int
) -> None:
    """By SFT or by RL, whatever pass counts come in between; but for what does not fill a last batch, as in plain RL."""
    total = questions * epochs
    plain = [str(i) for i in rounds.order(questions, total, seed)]
    carried: list[str] = []
    by_sft, by_rl = list[str](), list[str]()
    for index in range(count):
        slots = plain[rounds.cut(total, index, count, batch)]
        zero = data.draw(st.sets(st.sampled_from(sorted(set(plain)))), label="zero-pass questions")
        sft, rl, carried = rounds.share_out(slots, carried, zero, batch)
        assert set(sft) <= zero and not set(rl) & zero, "SFT takes zero-pass questions, and none of them meets RL"
        assert len(rl) % batch == 0 and len(carried) < batch
        by_sft, by_rl = by_sft + sft, by_rl + rl
    used = plain[: total // batch * batch] if total >= batch else plain
    assert Counter(by_sft + by_rl + carried) == Counter(used)
    if not by_sft:
        assert by_rl == plain[: total // batch * batch], (
            "without zero-pass questions it is plain RL, question by question"
        )


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 6), st.integers(1, 12), st.integers(0, 5))
def test_rl_keeps_the_order_of_plain_rl(questions: int, epochs: int, count: int, batch: int, seed: int) -> None:
    """What SFT takes leaves a gap; what stays does not change places."""
    total = questions * epochs
    slots = list(enumerate(rounds.order(questions, total, seed)))
    zero = {f"{at}:{name}" for at, name in slots if name % 3 == 0}
    carried, seen = list[str](), list[str]()
    for index in range(count):
        part = [f"{at}:{name}" for at, name in slots[rounds.cut(total, index, count, batch)]]
        _, rl, carried = rounds.share_out(part, carried, zero, batch)
        seen += rl
    places = [int(name.split(":")[0]) for name in seen]
    assert places == sorted(places)


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


@pytest.mark.parametrize(
    ("trace", "share", "part"),
    [
        ("One. Two. Three. Four.", 0.5, "One. Two. "),
        ("A b. C d.", 0.5, "A b. "),
        ("It is 3.14 wide. Then?\nYes", 0.3, "It is 3.14 wide. "),
    ],
)
def test_a_share_of_the_sentences(trace: str, share: float, part: str) -> None:
    assert rounds.prefix(trace, share, "sentences", _Words()) == part

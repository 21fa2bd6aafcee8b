"""Stage keys do not change by accident: those of a fixed config are written down, per version of the key schema.

The config is kept whole in golden_config.yaml, and inputs, package versions and the reward's source are fixed here, so that
neither a recipe's new value nor a new pin makes other keys: only a change of what a key is made of does.
``python tests/test_golden_keys.py`` adds what is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from synergy import stages, strategies
from synergy.config import Config
from synergy.driver import identity
from synergy.stages import KINDS

CONFIG = Path(__file__).with_name("golden_config.yaml")
KEYS = Path(__file__).with_name("golden_keys.json")
"""Schema version -> kind and its version -> stage -> key."""
RECIPES = {"progressive": {}, "model_merging": {"ratios": [0.25], "reported": 0.25}}
EXAMPLES = {
    "progressive": ("data", "mix-2", "benchmarks", "passes", "sft-1", "sft-2", "rl-1", "eval-base", "eval-rl-3"),
    "model_merging": ("merge-0.25",),
}
"""Stages whose keys are kept: every kind, and every part of the kinds that have several."""


def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Kind and its version -> stage -> key, as they are now."""
    monkeypatch.setattr(identity, "source_digest", lambda folder: "reward source")
    found: dict[str, dict[str, str]] = {}
    for recipe, names in EXAMPLES.items():
        planned = {stage.name: stage for stage in strategies.stages(fixed(recipe))}
        for name in names:
            stage, kind = planned[name], stages.kind(planned[name].kind)
            inputs = {role: f"digest of {role}" for role in stage.inputs}
            parts = identity.identity(stage, inputs, dict.fromkeys(kind.PACKAGES, "1.0"))
            found.setdefault(f"{stage.kind} {kind.VERSION}", {})[name] = identity.key(parts)
    return found


def fixed(recipe: str) -> Config:
    told = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(CONFIG))
    told.recipe = {"strategy": recipe, **RECIPES[recipe]}
    made = OmegaConf.to_object(told)
    assert isinstance(made, Config)
    return made


def test_the_examples_are_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name.split()[0] for name in keys(monkeypatch)} == set(KINDS)


def test_keys_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, golden = str(identity.SCHEMA), json.loads(KEYS.read_text())
    for kind, now in keys(monkeypatch).items():
        assert kind in golden.get(schema, {}), (
            f"keys of '{kind}' under schema {schema} are not written down: run python {Path(__file__).name} in tests/"
        )
        changed = [name for name, key in golden[schema][kind].items() if now[name] != key]
        assert not changed, (
            f"the keys of {changed} ({kind}) changed, so every finished stage of the kind would run again. If that is not "
            f"meant, a new setting must stay out of the identity at its default. If it is: raise VERSION of "
            f"synergy/stages/{kind.split()[0]}.py where that kind alone gives other results, or else bump the key-schema "
            f"version (SCHEMA in synergy/driver/identity.py), and run python {Path(__file__).name} in tests/"
        )


def test_a_change_of_identity_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(monkeypatch)
    real = stages.kind("sft").identity
    monkeypatch.setattr(stages.kind("sft"), "identity", lambda settings: {**real(settings), "new": None})
    after = keys(monkeypatch)
    assert {kind for kind in before if before[kind] != after[kind]} == {f"sft {stages.kind('sft').VERSION}"}
    with pytest.raises(AssertionError, match="bump the key-schema version"):
        test_keys_are_what_they_were(monkeypatch)


def test_versions_that_were_written_down_stay() -> None:
    golden = json.loads(KEYS.read_text())
    assert set(golden) >= {str(number) for number in range(1, identity.SCHEMA + 1)}, "no schema version is forgotten"


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        there = json.loads(KEYS.read_text()) if KEYS.exists() else {}
        mine = there.setdefault(str(identity.SCHEMA), {})
        there[str(identity.SCHEMA)] = {**keys(patch), **mine}  # what is there is never replaced
        KEYS.write_text(json.dumps(there, indent=1, sort_keys=True) + "\n")

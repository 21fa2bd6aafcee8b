"""launch/plugins/verl_reference.py: where verl's reference model lies is what its key says, with verl's own engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_within_update import environment, job, run

from synergy.stages import fit_rl, rl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a model that is to stay, without the plug-in; the same with it; of one that is to go, with it."""
    folder = tmp_path_factory.mktemp("reference")
    words = job("rl", "rl")
    told = [[*words, rl.override(fit_rl.AWAY[0], away)] for away in (False, True)]
    (folder / "in.json").write_text(json.dumps(told))
    env = environment(folder) | {"VERL_USE_EXTERNAL_MODULES": "synergy_verl"}
    run("verl_offloads.py", str(folder / "in.json"), str(folder / "out.json"), **env)
    return json.loads((folder / "out.json").read_text())


def test_it_stays_or_goes_as_the_key_says_and_is_the_same_model(found: Any) -> None:
    _, stays, goes = found
    assert stays[0] == ["NoneType"] and goes[0] == ["CPUOffloadPolicy"]
    assert stays[1] and goes[1], "a model that is only read"
    assert stays[2] == goes[2]


def test_the_reason_is_still_there(found: Any) -> None:
    assert found[0][0] == ["CPUOffloadPolicy"], "verl heeds its key: the plug-in can go"

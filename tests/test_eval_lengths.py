"""An evaluation that its server would not answer is refused before anything runs."""

from __future__ import annotations

import json

import pytest
from test_strategies import plan

from synergy.errors import UserError
from synergy.stages import evaluate

SERVERS = (["--max-model-len=4096"], ["--dtype=auto", "--max_model_len", "4096", "--enforce-eager"])
UNKNOWN = (["--max-model-len=4k"], ["--max-model-len=auto"], ["--dtype=auto"], [])


def check(most: int, server: list[str]) -> None:
    words = (f"evaluate.sampling.max_tokens={most}", f"evaluate.server={json.dumps(server)}")
    evaluate.check(plan("base", *words)["eval-base"], {})


@pytest.mark.parametrize("server", SERVERS)
def test_responses_as_long_as_the_servers_context_are_refused(server: list[str]) -> None:
    check(4095, server)
    with pytest.raises(
        UserError, match=r"^evaluate\.sampling\.max_tokens=4096: .*max.model.len=4096 \(evaluate\.server\)"
    ):
        check(4096, server)


@pytest.mark.parametrize("server", UNKNOWN)
def test_a_context_that_is_not_known_here_is_for_vllm_to_judge(server: list[str]) -> None:
    check(99999, server)

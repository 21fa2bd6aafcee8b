"""Rollouts that begin with a trace, for SFT in the steps of RL: verl's agent loop `within_step_agent`.

Named to verl in prefix_agent.yaml; written for verl 0.9.1's V1 trainer, no file of which is changed. The losses are in
`verl_within_step`; what becomes of a step's rows in `verl_within_rows`.

Rows whose extra_info has a "prefix" begin their response with it, with response_mask 0; the policy writes the rest. With
"whole" the prefix is all of the trace, and nothing is generated.
"""

from collections.abc import Sequence
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput
from verl_prefix_rollout import prefix_of


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
        info = plain(kwargs.get("extra_info"))
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


def plain(value: Any) -> dict[str, Any]:
    """A dict that TransferQueue may have wrapped; {} for anything else."""
    found = getattr(value, "data", value)
    return found if isinstance(found, dict) else {}

"""Rollouts that continue an external reasoning trace: verl's agent loop `prefix_agent`.

Chosen by rollout.agent.default_agent_loop=prefix_agent and named to verl in prefix_agent.yaml (beside this file) by
rollout.agent.agent_loop_config_path. Written for verl 0.9.1's V1 trainer.

A row whose extra_info has a non-empty string "prefix" is prompted with its own prompt followed by that beginning of a
response, so that the policy generates only the continuation. The prefix is part of the prompt: it gets no RL loss, and
data.max_prompt_length must hold it. With extra_info["prefix_rollouts"] = k only the first k rollouts of the group carry
it (absent or negative: all). The reward function sees in extra_info["prefix"] what was used, "" when nothing was. Rows
without a prefix are rolled out exactly as by verl's single_turn_agent.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def prefix_of(extra_info: Any, session: int) -> str:
    """The prefix that rollout number `session` (0-based) of a group carries; "" for none."""
    info = extra_info if isinstance(extra_info, dict) else {}
    prefix, carriers = info.get("prefix") or "", info.get("prefix_rollouts")
    if carriers is not None and 0 <= int(carriers) <= session:
        return ""
    return str(prefix)


class PrefixAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop, starting the response with the row's prefix. verl makes one instance per rollout."""

    _prefix = ""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        self._prefix = prefix_of(kwargs.get("extra_info"), int(kwargs.get("session_id", 0)))
        output = await super().run(sampling_params, priority=priority, **kwargs)
        # verl merges these fields into the reward function's extra_info: it must judge prefix and continuation
        # together, also where the row has a prefix that this rollout did not carry.
        output.extra_fields["prefix"] = self._prefix
        return output

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of the prompt and of the prefix. Raises ValueError when they exceed rollout.prompt_length."""
        prompt = await super().ct_build_initial_tokens(*args, **kwargs)
        if not self._prefix:
            return prompt
        ids = [*prompt, *self.tokenizer.encode(self._prefix, add_special_tokens=False)]
        if len(ids) > self.prompt_length:
            raise ValueError(
                f"prompt and trace prefix make {len(ids)} tokens, more than data.max_prompt_length={self.prompt_length}"
            )
        return ids

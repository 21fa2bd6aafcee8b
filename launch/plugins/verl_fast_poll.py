"""A replay buffer that looks often: trainer.v1.sampler.custom_sampler.{path: <this file>, name: FastPoll}.

verl 0.9.1 waits a fixed 2 s between two looks at its rollouts, with no config key, which would dominate a step of a
tiny model. A custom sampler is given none of the settings of algorithm.filter_groups: leave it out where those are
on.
"""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class FastPoll(ReplayBuffer):
    """verl's replay buffer, polling every 0.05 s."""

    def __init__(self, *args: Any, poll_interval: float = 0.05, **kwargs: Any) -> None:
        super().__init__(*args, poll_interval=poll_interval, **kwargs)

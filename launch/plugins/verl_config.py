"""`python verl_config.py OVERRIDES` prints what `python -m verl.trainer.main_ppo --cfg job --resolve OVERRIDES` prints.

The same YAML files, composed by the same Hydra, but without importing verl, which imports torch first: below a second
rather than ten. Exit code 1 and Hydra's message when an override does not fit verl's configuration. Like verl's own
check it knows keys, not types: verl's YAML files declare none. The reward function's own keys, which verl passes on
unseen, are checked by the function.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def config_folder() -> Path:
    """verl's own configuration files, found without importing it. Raises ModuleNotFoundError when verl is missing."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed in this environment")
    return Path(spec.submodule_search_locations[0]) / "trainer" / "config"


def resolved(overrides: list[str]) -> DictConfig:
    """verl's whole configuration with `overrides` applied, interpolations resolved."""
    with initialize_config_dir(str(config_folder()), version_base=None):
        config = compose("ppo_trainer", overrides)
    OmegaConf.resolve(config)
    return config


def check_reward(config: DictConfig) -> None:
    """Raises ValueError for reward_kwargs that the project's reward function would refuse, or ignore."""
    given: Any = OmegaConf.to_container(config.reward.custom_reward_function)
    users = Path(given.get("path") or "").name == "own.py"  # a user's function has keywords of its own
    if not users and (given := given.get("reward_kwargs")):
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from reward_fns.accuracy_format import settings_problem

        if problem := settings_problem(given):
            raise ValueError(f"reward.custom_reward_function.reward_kwargs: {problem}")


def main(overrides: list[str]) -> int:
    """Print the configuration, or the first thing that is wrong with the overrides."""
    try:
        config = resolved(overrides)
        check_reward(config)
        print(OmegaConf.to_yaml(config))
    except (HydraException, OmegaConfBaseException, ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

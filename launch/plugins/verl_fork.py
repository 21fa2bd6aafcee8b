"""`python verl_fork.py OVERRIDES` is `python -m verl.trainer.main_ppo OVERRIDES`, with one import for all processes.

For jobs on one host (see fork_server). The processes of Ray's workers come from the fork
server by Ray's own runtime_env.py_executable, those of vLLM by multiprocessing. Started by a warm server's stand-in for
python (see warm_start), that one serves them too; and with $SYNERGY_RAY_ADDRESS the job attaches to the cluster there
(see warm_ray), by verl's own ray_kwargs, instead of starting one.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import fork_server
import warm_start

ADDRESS = "SYNERGY_RAY_ADDRESS"
RAY = "ray_kwargs.ray_init"
STAGE = ("SYNERGY_", "VERL_", "VLLM_", "HF_", "TRANSFORMERS_", "TORCH", "OMP_", "TOKENIZERS_", "PYTHON")
"""Beginnings of the names of variables that a stage sets: workers of a cluster that was there before don't inherit them."""
SECRET = re.compile("_(TOKEN|KEY|SECRET|PASSWORD)$")
"""Never passed on: verl prints what it is told. Workers have the user's own from the cluster, which inherits them."""


def stand_in() -> Path:
    """The stand-in for python: the one that runs this process, or that of a server of its own."""
    if fork_server.inside():
        return Path(sys.executable)
    warm_start.preload()
    return fork_server.start()


def attached(environment: Mapping[str, str], overrides: list[str]) -> list[str]:
    """What verl is told to attach to the cluster at $SYNERGY_RAY_ADDRESS, if there is one: its address, no sizes, which Ray
    refuses for a cluster that is there, and the stage's environment."""
    address = environment.get(ADDRESS)
    if not address:
        return []
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    sizes = sorted(name for name in given if name.startswith(f"{RAY}.") and name.count(".") == 2)
    names = sorted(
        name for name in environment if name.startswith(STAGE) and name != ADDRESS and not SECRET.search(name)
    )
    passed = {f"{RAY}.runtime_env.env_vars.{name}": environment[name] for name in names}
    return [
        f"++{RAY}.address={_quoted(address)}",
        *(f"++{name}=null" for name in sizes),
        *(f"++{name}={_quoted(value)}" for name, value in passed.items() if name not in given),
    ]


def _quoted(value: str) -> str:
    """In Hydra's grammar."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def main() -> None:
    """Run verl's trainer with this process's arguments."""
    arguments = [*sys.argv[1:], *attached(os.environ, sys.argv[1:])]
    try:
        arguments.append(f"++{RAY}.runtime_env.py_executable={stand_in()}")
    except RuntimeError as error:
        print(f"verl_fork: {error}; every process imports for itself, which is slower", file=sys.stderr)
    from verl.trainer import main_ppo

    sys.argv = ["verl.trainer.main_ppo", *arguments]
    main_ppo.main()


if __name__ == "__main__":
    main()

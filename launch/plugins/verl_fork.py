"""`python verl_fork.py OVERRIDES` is `python -m verl.trainer.main_ppo OVERRIDES`, with one import for all processes.

For jobs on one machine without accelerator (see fork_server). The processes of Ray's workers come from the fork
server by Ray's own runtime_env.py_executable, those of vLLM by multiprocessing. Started by a warm server's stand-in for
python (see warm_start), that one serves them too.
"""

import sys
from pathlib import Path

import fork_server
import warm_start


def stand_in() -> Path:
    """The stand-in for python: the one that runs this process, or that of a server of its own."""
    if fork_server.inside():
        return Path(sys.executable)
    warm_start.preload()
    return fork_server.start()


def main() -> None:
    """Run verl's trainer with this process's arguments."""
    arguments = sys.argv[1:]
    try:
        arguments.append(f"++ray_kwargs.ray_init.runtime_env.py_executable={stand_in()}")
    except RuntimeError as error:
        print(f"verl_fork: {error}; every process imports for itself, which is slower", file=sys.stderr)
    from verl.trainer import main_ppo

    sys.argv = ["verl.trainer.main_ppo", *arguments]
    main_ppo.main()


if __name__ == "__main__":
    main()

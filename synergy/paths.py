"""Where the files beside the package are, in a checkout and in a wheel alike, and what child processes see of them."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = not (PACKAGE / "_files").is_dir()
ROOT = PACKAGE.parent if CHECKOUT else PACKAGE / "_files"
"""The folder that holds recipes/, reward_fns/, merge/, eval/ and launch/."""
ENVS = Path(os.path.abspath(os.environ.get("SYNERGY_ENVS") or ROOT / ".envs"))
"""The environments that launch/setup_envs.py makes."""


def pythonpath() -> str:
    """PYTHONPATH of child processes: our modules (in a wheel ROOT holds a stand-in for them) and the frameworks' plug-ins."""
    return os.pathsep.join([str(ROOT), str(ROOT / "launch" / "plugins")])


def env_path(python: Path) -> dict[str, str]:
    """PATH with an interpreter's own folder first: torchrun, ray and ninja are looked up by name."""
    return {"PATH": os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))}

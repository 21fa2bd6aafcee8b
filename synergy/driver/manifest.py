"""The files of a published output with their sums (``manifest.json`` beside it): they name the file that was damaged later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from synergy import machine
from synergy.driver import identity

FILE = "manifest.json"


def write(folder: Path) -> dict[str, str]:
    """Sums of the files in a stage's ``output``, read once, and written down."""
    found = identity.sums(folder / "output")
    machine.replace_text(folder / FILE, json.dumps(found, indent=1) + "\n")
    return found


def read(folder: Path) -> dict[str, str] | None:
    """None for a stage of an older version, or a manifest that is damaged itself."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else None


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """``file is gone``, ``is new`` or ``has another content``, file by file."""
    words = []
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            words.append(
                f"{name} {'is gone' if name not in now else 'is new' if name not in was else 'has another content'}"
            )
    return words


def told(folder: Path) -> str:
    """What changed in a stage's output, in a few words; reads it whole."""
    was = read(folder)
    if was is None:
        return "which file is not recorded"
    found = differences(was, identity.sums(folder / "output"))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more if found else "only dates or inodes differ from what was read a moment ago"


def verify(root: Path, output: str, digest: str) -> str | None:
    """What is wrong with a published output (path below the run directory) by its whole content; None if nothing."""
    if not (root / output).exists():
        return f"{output} is gone"
    if identity.digest_of(identity.sums(root / output)) == digest:
        return None
    return f"{output}: {told((root / output).parent)}"

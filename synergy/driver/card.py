"""The card beside a published stage (``README.md`` in its folder): where the result comes from, in Hugging Face's form.

It lies beside ``output/``, not in it: the output is the same bytes however and whenever it was made.
"""

from __future__ import annotations

import functools
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import yaml

from synergy import machine, paths
from synergy.driver.ledger import Entry
from synergy.driver.plan import MODELS, Step

FILE = "README.md"


def write(step: Step, entry: Entry, recipe: str) -> None:
    """Replaces the card of a stage; called before the ledger gets its line, so that every finished stage has one."""
    machine.replace_text(step.folder / FILE, text(step, entry, recipe))


def text(step: Step, entry: Entry, recipe: str) -> str:
    """YAML front matter for checkpoints, then the parents, settings, versions and figures as they entered the ledger."""
    front = _fenced({"library_name": "transformers", "tags": ["synergy", step.stage.kind]}, "---", "---")
    parts = dict(entry.identity)
    settings, packages = parts.pop("settings", {}), parts.pop("packages", {})
    sources = {role: _parent(step, role, entry) for role in step.stage.inputs}
    told: dict[str, Any] = {
        "recipe": recipe,
        "stage": step.stage.name,
        "kind": step.stage.kind,
        "key": entry.key,
        "content": entry.digest,
        "made": datetime.fromtimestamp(entry.started + entry.seconds, UTC).isoformat(timespec="seconds"),
        "seconds": round(entry.seconds, 1),
        "attempt": entry.attempt,
        "synergy": source(),
    }
    sections = [
        f"# {step.stage.name}: {step.stage.note or step.stage.kind}",
        _fenced(told),
        "## Made from",
        _fenced(sources) if sources else "nothing",
        "## Settings\n\nThose that decide the result; `attempt-*/` has the native configuration and the command.",
        _fenced(settings),
        "## Versions",
        _fenced(packages) if packages else "of no framework",
        "## Figures",
        _fenced(entry.figures),
    ]
    return (front + "\n" if step.stage.kind in MODELS else "") + "\n\n".join(sections) + "\n"


def _parent(step: Step, role: str, entry: Entry) -> dict[str, str]:
    """The stage or outside input behind a role; content: its digest when it was read."""
    name, told = step.stage.inputs[role], {}
    if role in entry.inputs:
        told["content"] = entry.inputs[role]
    return {"name": name, "key": str(entry.identity.get("inputs", {}).get(role, "")), **told}


def _fenced(value: Any, head: str = "```yaml", tail: str = "```") -> str:
    return f"{head}\n{yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)}{tail}"


@functools.cache
def source() -> str:
    """Synergy's version, and for a checkout its git commit; ``+changes`` where files differ from it."""
    try:
        version = metadata.version("synergy-vlm")
    except metadata.PackageNotFoundError:
        version = "unknown version"
    if not paths.CHECKOUT:
        return version
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=paths.ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}, commit {told.stdout.strip()}"

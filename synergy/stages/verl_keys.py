"""verl's configuration in a recipe: nested there, dotted keys and words of Hydra's override grammar on verl's command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; an empty mapping stays a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{at}.{name}" if at else str(name)
        found |= flatten(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an RL stage, dotted: of verl's own YAML, of what it lacks there, and the length of the stage's responses."""
    length = {"data.max_response_length": settings["max_response_length"]}
    return flatten(settings["verl"]) | flatten(settings["verl_add"]) | length


def override(key: str, value: Any) -> str:
    """``key=value`` in Hydra's override grammar; strings are quoted, so that paths and words stay what they are."""
    if isinstance(value, str):
        text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    elif isinstance(value, list):
        text = "[" + ",".join(override("", item)[1:] for item in value) + "]"
    else:
        text = json.dumps(value)
    return f"{key}={text}"

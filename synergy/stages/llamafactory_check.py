"""Checks a LLaMA-Factory config against the schema dumped from its own dataclasses, without importing it.

LLaMA-Factory itself finds an unknown key after ten seconds of imports, an unknown template later still, and takes the string
"maybe" for a boolean. Schema: llamafactory_schema.json, written by launch/dump_llamafactory_schema.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from synergy.errors import UserError, near

TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
    "null": (type(None),),
}


@cache
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "llamafactory_schema.json").read_text())
    return found


def check(config: Mapping[str, Any], where: str = "sft.config") -> None:
    """Raises UserError for the first key that LLaMA-Factory does not know or whose value it would misread."""
    keys = schema()["keys"]
    for name, value in config.items():
        if name not in keys:
            version = schema()["llamafactory"]
            raise UserError(f"{where}.{name}: LLaMA-Factory {version} has no such key{near(name, keys)}")
        _check_value(f"{where}.{name}", value, keys[name])
    template = config.get("template")
    if template not in schema()["templates"]:
        close = near(str(template), schema()["templates"])
        raise UserError(f"model.template={template!r}: LLaMA-Factory has no such template{close}")


def _check_value(where: str, value: Any, key: Mapping[str, Any]) -> None:
    allowed = [t for name in key["types"] for t in TYPES[name]]
    if isinstance(value, bool) and bool not in allowed:
        hint = f'; quote the word, as in "{"yes" if value else "no"}"' if "choices" in key else ""
        raise UserError(f"{where}={value}: a boolean where {' or '.join(key['types'])} is wanted{hint}")
    if not isinstance(value, tuple(allowed)):
        raise UserError(f"{where}={value!r}: {type(value).__name__} where {' or '.join(key['types'])} is wanted")
    if "choices" in key and value is not None and str(value) not in key["choices"]:
        raise UserError(f"{where}={value!r}: one of {', '.join(key['choices'])}")

"""Dumps every key that ``llamafactory-cli train`` accepts, with type, default and choices, and its template names, as JSON.

Run in the training environment when the LLaMA-Factory pin moves; the driver then checks YAML without importing torch:
    .envs/train/bin/python launch/dump_llamafactory_schema.py > synergy/stages/llamafactory_schema.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from importlib.metadata import version
from typing import Any


def kinds(hint: Any) -> list[str]:
    """The plain type names that a YAML value may have: bool, int, float, str, list, dict, null."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return sorted({name for part in typing.get_args(hint) for name in kinds(part)})
    if origin is typing.Literal:
        return sorted({type(value).__name__ for value in typing.get_args(hint)})
    plain = origin or hint
    if plain is type(None):
        return ["null"]
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
    return [names.get(plain, "str")]


def main() -> None:
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams.parser import _TRAIN_ARGS
    from transformers import HfArgumentParser

    parser = HfArgumentParser(_TRAIN_ARGS)
    choices = {action.dest: [str(c) for c in action.choices] for action in parser._actions if action.choices}
    keys: dict[str, dict[str, Any]] = {}
    for group in _TRAIN_ARGS:
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if field.init:
                keys[field.name] = {"types": kinds(hints[field.name])}
                if field.name in choices:
                    keys[field.name]["choices"] = choices[field.name]
    found = {
        "llamafactory": version("llamafactory"),
        "templates": sorted(TEMPLATES),
        "keys": dict(sorted(keys.items())),
    }
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

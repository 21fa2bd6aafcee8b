"""A YAML file of models to evaluate without training any: names of models, each a folder or a hub name, or more about it.

    base: {path: Qwen/Qwen2.5-VL-7B-Instruct, revision: <40 digits>}
    sft: /models/sft                  # stands for the paper's row of that name
    mine: {path: /models/mine, recipe: rl, instructed: true}

The base is the model of that name, or the one with ``base: true``; it gets no instruction unless ``instructed`` says so, all
others do. recipe: the row of the paper that a model stands for; by itself the one that bears its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from synergy.config import Config
from synergy.driver import externals
from synergy.errors import UserError
from synergy.report import specs

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """recipe: ours that makes the same row, '' for none of the paper's."""

    name: str
    path: str
    revision: str | None = None
    instructed: bool | None = None
    recipe: str = ""
    base: bool = False


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise UserError(
                    f"line {key.start_mark.line + 1}: {key.value!r} is there twice; give each model its own name"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(file: Path) -> list[Checkpoint]:
    """The models of a file, the base first. Raises UserError for a file that says none, or says it wrongly."""
    try:
        told = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoints={file}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoints={file} is no YAML: {' '.join(str(error).split())[:500]}") from error
    except UserError as error:
        raise UserError(f"checkpoints={file}, {error}") from error
    if not isinstance(told, Mapping) or not told:
        raise UserError(
            f"checkpoints={file} must map names of models to folders or hub names, such as `sft: /models/sft`"
        )
    try:
        found = [_one(str(name), given) for name, given in told.items()]
        _check(found)
    except UserError as error:
        raise UserError(f"checkpoints={file}: {error}") from error
    return sorted(found, key=lambda one: not one.base)


def _one(name: str, given: Any) -> Checkpoint:
    if not NAME.fullmatch(name) or name in ("source", "benchmarks"):
        raise UserError(
            f"{name!r} can't name a model: letters, digits, '.', '_' and '-', and neither source nor benchmarks"
        )
    values = {"path": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not values.get("path"):
        raise UserError(f"{name}: give a folder or hub name, or {{path: ..., revision: ...}}")
    types = {"path": str, "revision": str, "instructed": bool, "recipe": str, "base": bool}
    for key, value in values.items():
        if key not in types:
            raise UserError(f"{name}.{key} is unknown; one of {', '.join(f.name for f in fields(Checkpoint)[1:])}")
        if not isinstance(value, types[key]):
            raise UserError(
                f"{name}.{key}={value!r} must be {'true or false' if types[key] is bool else 'text in quotes'}"
            )
    rows = specs.known()
    row = values.get("recipe", name)
    if "recipe" in values and row not in rows:
        raise UserError(f"{name}.recipe={row!r} is no row of the paper; one of {', '.join(rows)}")
    return Checkpoint(
        **{**values, "name": name, "recipe": rows.get(row, ""), "base": values.get("base", name == "base")}
    )


def _check(found: list[Checkpoint]) -> None:
    """One base, no model twice, and each to be had."""
    bases = [one.name for one in found if one.base]
    if len(bases) != 1:
        raise UserError(
            f"{len(bases)} models are the base ({', '.join(bases) or 'none'}); call one of them base, or give it `base: true`"
        )
    places: dict[tuple[str, str | None], str] = {}
    for one in found:
        externals.model(one.path, one.revision, one.name)
        folder = Path(one.path).expanduser()
        place = (str(folder.resolve()) if folder.is_dir() else one.path, one.revision)
        if place in places:
            raise UserError(f"{places[place]} and {one.name} are the same model, {one.path}; give it once")
        places[place] = one.name


def configured(cfg: Config, found: list[Checkpoint]) -> Config:
    """The config that evaluates them, from one of ``recipe=checkpoints``."""
    base = found[0]
    models = {
        one.name: {"path": one.path, "revision": one.revision, "instructed": one.instructed is not False}
        for one in found[1:]
    }
    recipe = {**cfg.recipe, "models": models, "base_instructed": bool(base.instructed)}
    return replace(cfg, recipe=recipe, model=replace(cfg.model, path=base.path, revision=base.revision))

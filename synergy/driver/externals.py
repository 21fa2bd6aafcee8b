"""External inputs of a plan: the base model, other given models and the data source, where they lie and what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.config import Config
from synergy.driver import identity
from synergy.errors import UserError

LAB = "lab"
LAB_FILES = ("train.jsonl", "val.jsonl")
"""What ``synergy/lab/digits.py`` writes for training."""

CHECKPOINTS = "checkpoints"
"""The strategy that evaluates given models and trains none."""


@dataclass(frozen=True)
class External:
    """path: local folder. digest: of its content, or of hub name and commit, which say the same."""

    path: Path
    digest: str


def resolve(cfg: Config, cache: Path | None, fetch: bool) -> Mapping[str, External]:
    """``base``, the recipe's given models by their names and, for data in a folder, ``source``. fetch: download a hub model
    that is not in the local cache yet.

    Raises UserError for a missing folder, or a hub name without commit.
    """
    found = {"base": model(cfg.model.path, cfg.model.revision, "model", cache, fetch)}
    for name, given in models(cfg).items():
        found[name] = model(given["path"], given.get("revision"), f"recipe.models.{name}", cache, fetch)
    if cfg.data.source != LAB:
        folder = Path(cfg.data.source).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"data.source={cfg.data.source}: no such folder; give the folder of the JSONL files, or 'lab'"
            )
        trains = cfg.recipe.get("strategy") != CHECKPOINTS
        for name in filter(None, (cfg.data.train, cfg.data.validation) if trains else ()):
            if not os.access(folder / name, os.R_OK):
                raise UserError(f"{folder / name} is missing or unreadable; see data.train and data.validation")
        found["source"] = External(folder.resolve(), identity.digest(folder, cache))
    else:
        for key, wanted in (("data.train", cfg.data.train), ("data.validation", cfg.data.validation)):
            if wanted and wanted not in LAB_FILES:
                raise UserError(
                    f"{key}={wanted}: the lab's digits are {' and '.join(LAB_FILES)}; choose one, or set data.source to "
                    f"the folder that holds {wanted}"
                )
    return found


def models(cfg: Config) -> Mapping[str, Mapping[str, Any]]:
    """Models that are evaluated without having been trained here: name -> path, revision (recipes/recipe/checkpoints)."""
    return dict(cfg.recipe.get("models") or {}) if cfg.recipe.get("strategy") == CHECKPOINTS else {}


def model(name: str, revision: str | None, key: str, cache: Path | None = None, fetch: bool = False) -> External:
    """A folder, a hub name with its commit, or ``lab``. key: what the messages call the setting, ``key.path``.

    Raises UserError for what is none of them.
    """
    from synergy import lab

    folder = lab.BASE if name == LAB else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"{key}.path={name} has no config.json: not a checkpoint in Hugging Face format")
        return External(folder.resolve(), identity.digest(folder, cache))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{key}.path={name}: no such folder, and not a hub name (owner/name); or use 'lab'")
    return _hub(name, revision, key, fetch)


def _hub(name: str, revision: str | None, key: str, fetch: bool) -> External:
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"{key}.path={name} is a hub name: set {key}.revision to its 40-digit commit, a branch can move"
        )
    digest = identity.sha(f"hub:{name}@{revision}")
    try:
        from huggingface_hub import snapshot_download

        return External(Path(snapshot_download(name, revision=revision, local_files_only=not fetch)), digest)
    except ImportError as error:
        raise UserError("hub models need the package huggingface_hub: run `make setup`") from error
    except Exception as error:  # the hub client raises many kinds; each means: not to be had now
        if not fetch:
            return External(Path(f"{name}@{revision[:8]} (to be downloaded)"), digest)
        raise UserError(
            f"{key}.path={name}: download failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "check the network, log in for gated models, or give a local folder"
        ) from error

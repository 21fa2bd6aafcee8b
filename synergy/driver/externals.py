"""External inputs of a plan: base model, other given models, data source and tagged benchmarks, where they lie and what
they are."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from synergy.config import Benchmark, Config
from synergy.driver import identity
from synergy.errors import UserError
from synergy.strategies import blocks

LAB = "lab"
LAB_FILES = ("train.jsonl", "val.jsonl")
"""What ``synergy/lab/digits.py`` writes for training."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class External:
    """path: local folder. digest: of its content, or of hub name and commit, which say the same."""

    path: Path
    digest: str


def resolve(
    cfg: Config, cache: Path | None, fetch: bool, wanted: Collection[str] | None = None
) -> Mapping[str, External]:
    """``base``, the recipe's given models by their names, and of ``source`` (data in a folder) and the tagged benchmarks those
    that are ``wanted``; None: all. fetch: download what of the hub is not in the local cache yet.

    Raises UserError for a missing folder, or a hub name without commit.
    """
    found = {blocks.BASE: model(cfg.model.path, cfg.model.revision, "model", cache, fetch)}
    for name, given in blocks.given_models(cfg).items():
        found[name] = model(given["path"], given.get("revision"), f"recipe.models.{name}", cache, fetch)
    if cfg.data.source == LAB:
        _check_lab(cfg)
    elif wanted is None or blocks.SOURCE in wanted:
        found[blocks.SOURCE] = _source(cfg, cache)
    if cfg.evaluate.source not in (None, LAB) and (wanted is None or blocks.BENCHMARK_SOURCE in wanted):
        found[blocks.BENCHMARK_SOURCE] = _folder("evaluate.source", str(cfg.evaluate.source), cache)
    for bench in cfg.evaluate.benchmarks:
        name = blocks.tagged_input(bench)
        if bench.tagged and (wanted is None or name in wanted):
            found[name] = tagged(bench, bench.tagged, cache, fetch)
        if bench.levels and (wanted is None or blocks.levels_input(bench) in wanted):
            found[blocks.levels_input(bench)] = _levels(bench, bench.levels, cache)
    return found


def require_named(cfg: Config) -> None:
    """What can be told of them on a machine that has none. Raises UserError where there is no data source, and for a hub name
    without commit."""
    _require_source(cfg)
    given = [(cfg.model.path, cfg.model.revision, MODEL)]
    given += [(bench.tagged, bench.revision, _benchmark(bench)) for bench in cfg.evaluate.benchmarks if bench.tagged]
    for name, revision, wanted in given:
        if HUB_NAME.fullmatch(name) and not Path(name).expanduser().is_dir():
            _commit(name, revision, wanted)


def _levels(bench: Benchmark, name: str, cache: Path | None) -> External:
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(
            f"benchmark {bench.name}: levels={name}: no such file; synergy tag recipe.questions=benchmarks writes one, or set "
            "it to null"
        )
    return External(file.resolve(), identity.digest(file, cache))


def _check_lab(cfg: Config) -> None:
    for key, wanted in (("data.train", cfg.data.train), ("data.validation", cfg.data.validation)):
        if wanted and wanted not in LAB_FILES:
            raise UserError(
                f"{key}={wanted}: the lab's digits are {' and '.join(LAB_FILES)}; choose one, or set data.source to "
                f"the folder that holds {wanted}"
            )


def _require_source(cfg: Config) -> str:
    if cfg.data.source is None:
        made = "; synergy data prepare makes that folder from data.sources" if cfg.data.sources else ""
        raise UserError(f"data.source is not set: give the folder of the JSONL files, or 'lab'{made}")
    return cfg.data.source


def _source(cfg: Config, cache: Path | None) -> External:
    found = _folder("data.source", _require_source(cfg), cache)
    trains = cfg.recipe.get("strategy") != blocks.CHECKPOINTS
    for name in filter(None, (cfg.data.train, cfg.data.validation) if trains else ()):
        if not os.access(found.path / name, os.R_OK):
            raise UserError(f"{found.path / name} is missing or unreadable; see data.train and data.validation")
    return found


def _folder(setting: str, name: str, cache: Path | None) -> External:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"{setting}={name}: no such folder; give the folder of the JSONL files, or 'lab'")
    return External(folder.resolve(), identity.digest(folder, cache))


def model(name: str, revision: str | None, key: str, cache: Path | None = None, fetch: bool = False) -> External:
    """A folder, a hub name with its commit, or ``lab``. key: what the messages call the setting, ``key.path``.

    Raises UserError for what is none of them.
    """
    folder = _place(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"{key}.path={name} has no config.json: not a checkpoint in Hugging Face format")
        return External(folder.resolve(), identity.digest(folder, cache))
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{key}.path={name}: no such folder, and not a hub name (owner/name); or use 'lab'")
    return _hub(name, revision, fetch, Wanted(f"{key}.path", f"{key}.revision", "model"))


def at_hand(cfg: Config) -> Path | None:
    """The folder of the base model, where it is here already; its content is not read. Raises UserError for a hub name without
    commit."""
    folder = _place(cfg.model.path)
    if not folder.is_dir() and HUB_NAME.fullmatch(cfg.model.path):
        folder = _hub(cfg.model.path, cfg.model.revision, False, MODEL).path
    return folder if folder.is_dir() else None


def _place(name: str) -> Path:
    """Where a model's folder would be, by its name."""
    from synergy import lab

    return lab.BASE if name == LAB else Path(name).expanduser()


def tagged(bench: Benchmark, name: str, cache: Path | None, fetch: bool) -> External:
    """The folder of a published benchmark, or of its commit in the hub's cache. Raises UserError for what is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return External(folder.resolve(), identity.digest(folder, cache))
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"benchmark {bench.name}: tagged={name} is no folder, and not a hub name (owner/name)")
    return _hub(name, bench.revision, fetch, _benchmark(bench))


def data_set(name: str, revision: str | None, setting: str) -> Path:
    """The folder or file of a data set: a path, or a hub name with its commit, which is fetched unless the cache has it.

    Raises UserError for what is neither, named by ``setting``.
    """
    place = Path(name).expanduser()
    if place.exists():
        return place.resolve()
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{setting}={name}: no such file or folder, and not a hub name (owner/name)")
    return _hub(name, revision, True, Wanted(setting, "its revision", "dataset")).path


@dataclass(frozen=True)
class Wanted:
    """What of the hub: the settings that name it and its commit, for people; the hub's word for its kind; which files, by
    pattern (none: all)."""

    setting: str
    commit: str
    kind: str
    files: tuple[str, ...] = ()


MODEL = Wanted("model.path", "model.revision", "model")


def _benchmark(bench: Benchmark) -> Wanted:
    commit = "its revision (evaluate.benchmarks.N.revision)"
    return Wanted(f"benchmark {bench.name}: tagged", commit, "dataset", ("*.parquet",))


def _commit(name: str, revision: str | None, wanted: Wanted) -> str:
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"{wanted.setting}={name} is a hub name: set {wanted.commit} to its 40-digit commit, a branch can move; or give "
            "a local folder"
        )
    return revision


def _hub(name: str, revision: str | None, fetch: bool, wanted: Wanted) -> External:
    revision = _commit(name, revision, wanted)
    digest = identity.sha(f"hub:{'' if wanted.kind == 'model' else wanted.kind + 's/'}{name}@{revision}")
    try:
        from huggingface_hub import constants, snapshot_download

        place = snapshot_download(
            name,
            repo_type=wanted.kind,
            revision=revision,
            allow_patterns=list(wanted.files) or None,
            local_files_only=not fetch or constants.HF_HUB_OFFLINE,
        )
        return External(Path(place), digest)
    except ImportError as error:
        raise UserError("hub downloads need the package huggingface_hub: run `make setup`") from error
    except Exception as error:  # the hub client raises many kinds; each means: not to be had now
        if not fetch:
            return External(Path(f"{name}@{revision[:8]} (to be downloaded)"), digest)
        raise UserError(
            f"{wanted.setting}={name}: download failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "check the network, log in for gated ones, or give a local folder"
        ) from error

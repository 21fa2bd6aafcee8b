"""Stages: what a recipe is made of, and the small interface that every kind of stage implements.

A strategy (``synergy/strategies``) turns a config into a list of :class:`Stage`; the driver (``synergy/driver``) turns each
stage into a :class:`Job` and hands it to the module of its kind. A kind is one module with the attributes of :class:`Kind`;
a new framework is one more such module, listed in :data:`KINDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

KINDS = ("prepare", "sample", "sft", "rl", "merge", "evaluate")


@dataclass(frozen=True)
class Stage:
    """One step of a plan.

    name: unique in the plan, e.g. ``rl-2``. kind: one of :data:`KINDS`. settings: JSON-able values; the kind says which of
    them are identity and which are run-time. inputs: role -> name of an earlier stage or of an external input. note: why
    the recipe has this stage, for people.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Job:
    """A stage on its way: where its inputs lie and where it may write.

    work: the framework's own output directory, kept over attempts, so that native resume can only find this stage's past.
    attempt: what one launch writes (native config, command.sh, log, metrics). output: where the result is published.
    record: what a loader's log-probabilities on the model must be (``synergy/workers/logprobs.py``), for workers that have one
    running; None: not to be looked at.
    """

    stage: Stage
    key: str
    folder: Path
    attempt: Path
    inputs: Mapping[str, Path]
    pythons: Mapping[str, str]
    record: Path | None = None

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.stage.settings


@dataclass(frozen=True)
class Command:
    """A native command that a person can run by hand: argv, the environment variables it adds, its working directory."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True)
class Progress:
    """How far a running stage is: done of total units, and the figure people watch (loss, reward, ...)."""

    done: int
    total: int
    unit: str = "step"
    figure: str = ""


class Kind(Protocol):
    """What a module in this package offers to the driver."""

    IDENTITY: frozenset[str]
    """Settings that enter the stage's key: changing one makes another stage."""
    RUNTIME: frozenset[str]
    """Settings that may change without changing the result (paths, logging, workers)."""
    FRAMEWORKS: tuple[str, ...]
    """Names in ``synergy.environments.FRAMEWORKS``: the interpreters that it starts."""
    PACKAGES: tuple[str, ...]
    """Distributions there whose versions enter the key."""
    LOADER: tuple[str, str] | None
    """What reads the input ``model``: the framework whose interpreter does, and ``transformers`` or ``vllm``; None: neither."""
    NATIVE: str
    """The native command in short, for the plan; ``command.sh`` has it whole."""
    VERSION: int
    """Raised when this module's own behaviour changes the result."""

    def identity(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the settings that decides the result, native run-time keys left out."""

    def check(self, stage: Stage, pythons: Mapping[str, str]) -> None:
        """Raises UserError for settings that can't work; before any long work, without the inputs."""

    def command(self, job: Job) -> Command | None:
        """Writes the native config into ``job.attempt`` and returns the command that runs it; None: nothing is left to do."""

    def resume_point(self, job: Job) -> int | None:
        """The step of the last complete native checkpoint in ``job.work``; None: start from the beginning."""

    def progress(self, job: Job) -> Progress | None:
        """Read from the files the framework writes; None as long as there is nothing to tell."""

    def collect(self, job: Job, out: Path) -> dict[str, Any]:
        """Builds and verifies the result in ``out`` (not yet visible); returns the figures for the ledger."""


def kind(name: str) -> Kind:
    """The module that implements a kind, imported when first needed."""
    return cast(Kind, importlib.import_module(f"synergy.stages.{name}"))

"""The plan: for every stage of a recipe whether it is reused, resumed or run, and why. Reads only; well under a second."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from synergy import environments, stages, strategies
from synergy.config import Config
from synergy.driver import identity, ledger, manifest, private, retention
from synergy.driver.externals import External, resolve
from synergy.driver.ledger import Entry
from synergy.errors import UserError
from synergy.stages import Job, Stage


@dataclass(frozen=True)
class Workspace:
    """The run directory: ledger, lock, and one folder per stage key."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def digest_cache(self) -> Path | None:
        """Where content digests are remembered; None as long as nothing may be written."""
        return self.root / "digests.json" if self.root.is_dir() and os.access(self.root, os.W_OK) else None

    def folder(self, stage: Stage, key: str) -> Path:
        return self.root / "stages" / f"{stage.kind}-{key[:12]}"


@dataclass(frozen=True)
class Step:
    """A stage with its key and what will be done about it. parts: its identity; inputs: role -> folder it reads."""

    stage: Stage
    key: str
    parts: Mapping[str, Any]
    folder: Path
    inputs: Mapping[str, Path]
    action: Literal["reuse", "resume", "run"]
    why: str
    entry: Entry | None = None

    def job(self, pythons: Mapping[str, str], attempt: int) -> Job:
        return Job(self.stage, self.key, self.folder, self.folder / f"attempt-{attempt}", self.inputs, pythons)


@dataclass(frozen=True)
class Plan:
    """A recipe's steps in order, where they are kept, and the interpreter of each framework that they need."""

    recipe: str
    steps: list[Step]
    space: Workspace
    pythons: Mapping[str, str]


def of_config(cfg: Config, fetch: bool = False) -> Plan:
    """The plan of a composed config. fetch: download a hub model if it is not there yet."""
    private.check(cfg)
    retention.check_policy(cfg.run.keep)
    planned = strategies.stages(cfg)
    space = Workspace(Path(cfg.run.dir).expanduser().resolve())
    names = {name for stage in planned for name in stages.kind(stage.kind).FRAMEWORKS}
    pythons = {name: str(environments.find(name, getattr(cfg.frameworks, name))) for name in sorted(names)}
    externals = resolve(cfg, space.digest_cache, fetch, {name for stage in planned for name in stage.inputs.values()})
    return Plan(cfg.recipe["strategy"], make(planned, externals, space, pythons), space, pythons)


def make(
    planned: list[Stage], externals: Mapping[str, External], space: Workspace, pythons: Mapping[str, str]
) -> list[Step]:
    """The steps of a plan in order. Raises UserError for a missing environment or input."""
    again: dict[str, str] = {}
    while True:  # once, unless a checkpoint that was let go is needed
        steps = _steps(planned, externals, space, pythons, again)
        gone = {
            name for name, step in steps.items() if step.action == "reuse" and not (step.folder / "output").exists()
        }
        more = {
            name: f"{step.stage.name} needs it" + (f": {step.why}" if step.stage.name not in again else "")
            for step in steps.values()
            for name in step.stage.inputs.values()
            if step.action != "reuse" and name in gone
        }
        if not more:
            return list(steps.values())
        again |= more


def _steps(
    planned: list[Stage],
    externals: Mapping[str, External],
    space: Workspace,
    pythons: Mapping[str, str],
    again: Mapping[str, str],
) -> dict[str, Step]:
    """Name -> step. again: stages whose checkpoints were let go and must be made again -> what needs them."""
    keys = {name: external.digest for name, external in externals.items()}
    places = {name: external.path for name, external in externals.items()}
    entries = ledger.read(space.ledger)
    steps: dict[str, Step] = {}
    for stage in planned:
        versions = _versions(stages.kind(stage.kind), pythons)
        parts = identity.identity(stage, {role: keys[name] for role, name in stage.inputs.items()}, versions)
        key = identity.key(parts)
        folder = space.folder(stage, key)
        inputs = {role: places[name] for role, name in stage.inputs.items()}
        action, why = _action(stage, key, parts, folder, entries, steps, again, space.digest_cache)
        steps[stage.name] = Step(stage, key, parts, folder, inputs, action, why, entries.get(key))
        keys[stage.name], places[stage.name] = key, folder / "output"
    return steps


def _versions(kind: stages.Kind, pythons: Mapping[str, str]) -> dict[str, str]:
    there: dict[str, str] = {}
    for name in reversed(kind.FRAMEWORKS):
        there |= environments.versions(pythons[name])
    return {name: there[name] for name in kind.PACKAGES if name in there}


def _action(
    stage: Stage,
    key: str,
    parts: Mapping[str, Any],
    folder: Path,
    entries: Mapping[str, Entry],
    steps: Mapping[str, Step],
    again: Mapping[str, str],
    cache: Path | None,
) -> tuple[Literal["reuse", "resume", "run"], str]:
    if stage.name in again:
        return "run", f"its checkpoint was let go (run.keep=final), and {again[stage.name]}"
    anew = [name for name in stage.inputs.values() if name in steps and steps[name].action != "reuse"]
    entry = entries.get(key)
    if entry is not None and not anew:
        reason = _unusable(entry, folder, stage, steps, cache)
        if reason is None:
            pruned = "" if (folder / "output").exists() else "; its checkpoint was let go, and nothing here needs it"
            return "reuse", f"finished {_ago(entry)} by attempt {entry.attempt}{pruned}"
        return "run", reason
    job = Job(stage, key, folder, folder, {}, {})
    step = stages.kind(stage.kind).resume_point(job) if job.work.is_dir() and not anew else None
    if step is not None:
        return "resume", f"stopped after step {step}"
    if anew:
        return "run", f"builds on {anew[0]}, which is made now"
    return "run", _news(stage, parts, entries)


def _unusable(
    entry: Entry, folder: Path, stage: Stage, steps: Mapping[str, Step], cache: Path | None = None
) -> str | None:
    """Why a finished stage can't be reused, or None. It was verified when it was published, so that its content says all; of an
    output that lies elsewhere now it is read once and remembered in ``cache``."""
    output = folder / "output"
    if not output.exists():
        if not retention.pruned(folder, entry):
            return "its output is gone"
    elif identity.fingerprint(output) != entry.fingerprint and identity.digest(output, cache) != entry.digest:
        return (
            f"its output was changed after it was published ({manifest.told(folder)}); put it back, or it is made anew"
        )
    for role, name in stage.inputs.items():
        upstream = steps[name].entry if name in steps else None
        if upstream is not None and entry.inputs.get(role) != upstream.digest:
            return f"it was made from another result of {name}"
    return None


def _news(stage: Stage, parts: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    """What is different from the newest finished stage of the same name, if there is one."""
    old = [entry for entry in entries.values() if entry.name == stage.name and entry.kind == stage.kind]
    if not old:
        return "not made yet"
    changes = identity.differences(old[-1].identity, parts)
    more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
    return "changed: " + "; ".join(changes[:2]) + more


def _ago(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.started + entry.seconds).strftime("%Y-%m-%d %H:%M")


def require_space(space: Workspace, needed: int) -> None:
    """Raises UserError when the run directory can't be written or its disk is too small. needed: bytes."""
    try:
        space.root.mkdir(parents=True, exist_ok=True)
        probe = space.root / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run.dir={space.root} can't be written ({error.strerror}); set run.dir to a folder of yours or free space"
        ) from error
    stat = os.statvfs(space.root)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise UserError(
            f"run.dir={space.root} has {free / 1e9:.1f} GB free, the plan needs about {needed / 1e9:.1f} GB; "
            f"free some (`synergy clean {space.root}` says what may go) or set run.dir to a larger disk"
        )

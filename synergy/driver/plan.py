"""The plan: for every stage of a recipe whether it is reused, resumed or run, and why. Reads only; well under a second."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from synergy import environments, stages, strategies
from synergy.config import Config
from synergy.driver import identity, ledger, manifest, private, retention, store
from synergy.driver.externals import External, resolve
from synergy.driver.ledger import Entry
from synergy.driver.store import Stored
from synergy.errors import UserError
from synergy.stages import Job, Stage

MODELS = ("sft", "rl", "merge")
"""Kinds whose output is a checkpoint."""


@dataclass(frozen=True)
class Workspace:
    """The run directory: ledger, lock, and one folder per stage key. store: URL of the store behind it, if there is one."""

    root: Path
    store: str | None = None

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
    """A stage with its key and what will be done about it. parts: its identity; inputs: role -> folder it reads; stored: the
    result that is reused, where the store has it; pull: what of it is to come from there."""

    stage: Stage
    key: str
    parts: Mapping[str, Any]
    folder: Path
    inputs: Mapping[str, Path]
    action: Literal["reuse", "resume", "run"]
    why: str
    entry: Entry | None = None
    stored: Stored | None = None
    pull: Literal["", "records", "output"] = ""

    @property
    def here(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.action == "reuse" and not self.pull

    def job(self, pythons: Mapping[str, str], attempt: int) -> Job:
        return Job(self.stage, self.key, self.folder, self.folder / f"attempt-{attempt}", self.inputs, pythons)


@dataclass(frozen=True)
class Plan:
    """A recipe's steps in order, where they are kept, and the interpreter of each framework that they need. warm: run.warm."""

    recipe: str
    steps: list[Step]
    space: Workspace
    pythons: Mapping[str, str]
    warm: bool = False


def of_config(cfg: Config, fetch: bool = False) -> Plan:
    """The plan of a composed config. fetch: download a hub model if it is not there yet."""
    private.check(cfg)
    retention.check_policy(cfg.run.keep)
    planned = strategies.stages(cfg)
    space = Workspace(Path(cfg.run.dir).expanduser().resolve(), cfg.run.store or None)
    names = {name for stage in planned for name in stages.kind(stage.kind).FRAMEWORKS}
    pythons = {name: str(environments.find(name, getattr(cfg.frameworks, name))) for name in sorted(names)}
    externals = resolve(cfg, space.digest_cache, fetch, {name for stage in planned for name in stage.inputs.values()})
    return Plan(cfg.recipe["strategy"], make(planned, externals, space, pythons), space, pythons, cfg.run.warm)


def make(
    planned: list[Stage], externals: Mapping[str, External], space: Workspace, pythons: Mapping[str, str]
) -> list[Step]:
    """The steps of a plan in order. Raises UserError for a missing environment or input, or a store that can't be read."""
    keyed = _keys(planned, externals, pythons)
    stored = store.find(space.store, (key for key, _ in keyed.values())) if space.store else {}
    again: dict[str, str] = {}
    while True:  # once, unless a checkpoint that was let go is needed
        steps = _steps(planned, externals, space, keyed, stored, again)
        gone = {
            name
            for name, step in steps.items()
            if step.action == "reuse" and step.stored is None and not (step.folder / "output").exists()
        }
        more = {
            name: f"{step.stage.name} needs it" + (f": {step.why}" if step.stage.name not in again else "")
            for step in steps.values()
            for name in step.stage.inputs.values()
            if step.action != "reuse" and name in gone
        }
        if not more:
            return [_pulling(step, steps.values()) for step in steps.values()]
        again |= more


def _keys(
    planned: list[Stage], externals: Mapping[str, External], pythons: Mapping[str, str]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a stage -> its key, and the identity behind it."""
    keys = {name: external.digest for name, external in externals.items()}
    found = {}
    for stage in planned:
        versions = _versions(stages.kind(stage.kind), pythons)
        parts = identity.identity(stage, {role: keys[name] for role, name in stage.inputs.items()}, versions)
        keys[stage.name] = identity.key(parts)
        found[stage.name] = keys[stage.name], parts
    return found


def _pulling(step: Step, steps: Iterable[Step]) -> Step:
    """The step, with its whole output to be pulled if that is wanted here: of a checkpoint, if a stage that runs reads it."""
    output = step.folder / "output"
    if step.action != "reuse" or step.stored is None or not (step.pull or not output.exists()):
        return step
    users = [user for user in steps if output in user.inputs.values()]
    wanted = step.stage.kind not in MODELS or not users or any(user.action != "reuse" for user in users)
    return replace(step, pull="output") if wanted or output.exists() else step


def _steps(
    planned: list[Stage],
    externals: Mapping[str, External],
    space: Workspace,
    keyed: Mapping[str, tuple[str, dict[str, Any]]],
    stored: Mapping[str, Sequence[Stored]],
    again: Mapping[str, str],
) -> dict[str, Step]:
    """Name -> step. again: stages whose checkpoints were let go and must be made again -> what needs them."""
    places = {name: external.path for name, external in externals.items()}
    entries = ledger.read(space.ledger)
    steps: dict[str, Step] = {}
    for stage in planned:
        key, parts = keyed[stage.name]
        folder = space.folder(stage, key)
        inputs = {role: places[name] for role, name in stage.inputs.items()}
        action, why = _action(stage, key, parts, folder, entries, steps, again, space.digest_cache)
        step = Step(stage, key, parts, folder, inputs, action, why, entries.get(key))
        steps[stage.name] = step if stage.name in again else _with_store(step, steps, stored.get(key, ()))
        places[stage.name] = folder / "output"
    return steps


def _with_store(step: Step, steps: Mapping[str, Step], results: Sequence[Stored]) -> Step:
    """The step, seen that the store has these results of it: the one that is here, else one made from what its inputs are."""
    mine = step.entry.digest if step.entry is not None else None
    if step.action == "reuse":
        same = next((one for one in results if one.entry.digest == mine), None)
        why = step.why.replace("its checkpoint was let go", "its checkpoint is in the store") if same else step.why
        return replace(step, why=why, stored=same)
    if any(steps[name].action != "reuse" for name in step.stage.inputs.values() if name in steps):
        return step
    fit = [one for one in results if _other_input(one.entry, step.stage, steps) is None]
    fit.sort(key=lambda one: one.entry.digest != mine)
    if not fit:
        return step
    entry, here = fit[0].entry, f"; here {step.why}" if step.entry is not None else ""
    why = f"finished {_ago(entry)}, in the store ({fit[0].size / 1e6:,.1f} MB){here}"
    return replace(step, action="reuse", why=why, entry=entry, stored=fit[0], pull="records")


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
    return _other_input(entry, stage, steps)


def _other_input(entry: Entry, stage: Stage, steps: Mapping[str, Step]) -> str | None:
    """Why a finished stage is of other inputs than those that the plan has, or None."""
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

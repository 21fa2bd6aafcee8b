"""Before a stage starts: its inputs are still what they were, and its loader reads the very model that the tensors are.

The second is a forward pass on a fixed prompt and image (``synergy/workers/logprobs.py``), once per content of a model and
version of a loader; what it gave is kept in ``handoffs/`` of the run directory. vLLM is asked by the stage's own worker, which
has it running (``Job.record``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from synergy import environments, paths, stages
from synergy.driver import failure, identity, manifest, process, verify
from synergy.driver.ledger import Entry
from synergy.driver.plan import Step, Workspace
from synergy.errors import Passing, StageFailed, UserError
from synergy.stages import Command, Job
from synergy.workers import logprobs

ROLE = "model"
HUB = "snapshots"
"""Folder in the hub's cache that holds commits: what is known by its commit, and not by its content."""
LOG = "handoff.log"
Run = Callable[[Command, Path], process.Outcome]
"""Runs a command with its output in a file."""


def inputs(step: Step, space: Workspace, made: Mapping[str, Entry]) -> None:
    """Raises StageFailed for an input that changed since it was published, or since the plan. made: stage -> its entry."""
    for role, name in step.stage.inputs.items():
        place, entry = step.inputs[role], made.get(name)
        if not place.exists():
            raise StageFailed(f"{place}, {role} of stage {step.stage.name}, is gone; put it back, or run again")
        if entry is not None:
            fine = identity.fingerprint(place) == entry.fingerprint
            fine = fine or identity.digest(place, space.digest_cache) == entry.digest
            told = manifest.told(place.parent) if not fine else ""
        else:
            known = step.parts["inputs"][role]
            fine = place.parent.name == HUB or identity.digest(place, space.digest_cache) == known
            told = "its content is not what the plan saw"
        if not fine:
            raise StageFailed(
                f"{place}, {role} of stage {step.stage.name}, was changed ({told}); put it back, or run again: "
                "what is made from it is made anew"
            )


def model(job: Job, space: Workspace, digest: str, run: Run) -> Job:
    """The job, and with it the record for its worker, once its model was found whole and its loader reads it as it is. digest:
    of the model's content. Raises UserError or StageFailed."""
    loader, folder = stages.kind(job.stage.kind).LOADER, job.inputs.get(ROLE)
    if loader is None or folder is None:
        return job
    framework, how = loader
    python, file = job.pythons[framework], space.root / "handoffs" / f"{digest[:16]}.json"
    record = logprobs.read(file)
    if record is None:
        try:
            verify.model(folder)
        except UserError as error:
            raise UserError(f"stage {job.stage.name} can't begin from its model: {error}") from error
    version = f"transformers {environments.versions(python).get('transformers')}"
    if record is None or (how == "transformers" and version not in record.loads):
        words = (python, "-m", logprobs.__name__, str(folder), str(file), *(["check"] if how == "transformers" else []))
        env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **job.settings.get("env", {})}
        log = job.attempt / LOG
        done = run(Command(words, env, job.attempt), log)
        if done.code == 2:
            raise UserError(f"stage {job.stage.name}: {process.tail(log, 1)}")
        if failed := done.failed or (None if logprobs.read(file) else "told nothing"):
            raise (Passing if failure.cause(log).passing else StageFailed)(
                f"stage {job.stage.name}: the forward pass on its model {folder} {failed} (run.verify=false goes on without "
                f"it). Its last lines:\n{process.tail(log)}\nlog: {log}"
            )
    return replace(job, record=file)

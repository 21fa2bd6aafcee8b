"""Traces that wait for SFT (`recipe.sft_buffer`), on disk, so that a killed run goes on with the same ones.

A row is written once, when its question is found; a list of those that wait is written in every step, before verl trains.
So each of verl's checkpoints has the list of its own step beside it, whenever the run is killed: the step that is taken
again begins with that list, and no trace is lost or used twice in the history of the weights.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "global_step_{}/actor"
"""Of a step, beside `folder`; verl deletes it, and not the folder around it, for a checkpoint that is too old."""


class Waiting:
    """First in, first out. folder: beside verl's checkpoints; step: the last one that was taken, 0 for none.

    Raises FileNotFoundError where verl goes on from a checkpoint whose list is gone.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = self._lists()
        for later in [number for number in found if number > step]:  # of steps that will be taken again
            found.pop(later).unlink()
        if step and step not in found:
            raise FileNotFoundError(f"{folder} has no list of the traces that waited after step {step}: begin anew")
        self.names: list[str] = json.loads(found[step].read_text()) if step else []

    def __len__(self) -> int:
        return len(self.names)

    def add(self, step: int, fields: Mapping[str, Any]) -> None:
        """A row's fields, for a question that was found in `step`."""
        name = f"{step:08d}_{sum(name.startswith(f'{step:08d}_') for name in self.names):04d}.pt"
        _write(self.folder / name, lambda file: torch.save(dict(fields), file))
        self.names.append(name)

    def take(self, count: int) -> list[dict[str, Any]]:
        """The rows that have waited longest."""
        taken, self.names = self.names[:count], self.names[count:]
        return [torch.load(self.folder / name, weights_only=False) for name in taken]  # our own files

    def save(self, step: int) -> None:
        """The list that `step` leaves. What no checkpoint can go on from is deleted."""
        _write(self.folder / f"step_{step}.json", lambda file: file.write(json.dumps(self.names).encode()))
        needed = set(self.names)
        for number, file in self._lists().items():
            if number < step and not (self.folder.parent / CHECKPOINT.format(number)).exists():
                file.unlink()
            else:
                needed |= set(json.loads(file.read_text()))
        for file in self.folder.glob("*.pt"):
            if file.name not in needed:
                file.unlink()

    def _lists(self) -> dict[int, Path]:
        return {int(file.stem.split("_")[1]): file for file in self.folder.glob("step_*.json")}


def _write(path: Path, writer: Any) -> None:
    """A file that is there whole or not at all."""
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("wb") as file:
        writer(file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)

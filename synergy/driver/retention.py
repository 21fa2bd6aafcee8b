"""What in a run directory may go, and how it goes: what the ledger names and a recipe needs never does.

A folder is renamed before it is deleted, so that a kill in the middle leaves no half of it under its own name.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from synergy import machine
from synergy.driver import lock
from synergy.driver.ledger import Entry
from synergy.errors import UserError

POLICIES = ("all", "final")
"""Of ``run.keep``; keep.py applies them."""
DATA = "data"
"""Below the run directory: what ``synergy data prepare`` keeps."""
ARRIVING = ".arriving"
"""In a stage's folder: what was pulled from the store so far."""
TRASH = ".trash-"
NOTE = "pruned.json"
"""In the folder of a stage whose checkpoint was let go: of which content it was, and when."""
RECORDS = ("*.jsonl", "parents.json")
"""Of such a checkpoint's files those that stay, in the stage's folder ``records``: pass counts, what was merged."""
_ASIDE = (TRASH, ".probe-", ".state.json-")
"""Files and folders of the run directory itself that a killed driver can leave."""


@dataclass(frozen=True)
class Item:
    """Something that may go. path: file or folder. entry: of the stage whose published checkpoint it is: it leaves a note."""

    path: Path
    why: str
    entry: Entry | None = None


def check_policy(policy: str) -> None:
    """Raises UserError for a policy that is none."""
    if policy not in POLICIES:
        raise UserError(
            f"run.keep={policy!r} is one of {', '.join(POLICIES)}: all keeps every stage's checkpoint, final those that "
            "are evaluated or that a recipe ends with"
        )


def leftovers(root: Path, entries: Mapping[str, Entry]) -> list[Item]:
    """What no stage needs any more, whatever recipes are still to come. Unfinished stages are not among it: they continue."""
    found = [Item(p, "left by a driver that was killed") for p in _below(root) if p.name.startswith(_ASIDE)]
    found += [Item(p, "a report that was never finished") for p in _below(root / "reports") if p.name.startswith(".")]
    data = root / DATA
    for folder in (data, data / "parts", data / "portions", data / "benchmarks"):
        found += [Item(p, "left by a preparation that was killed") for p in _folders(folder) if p.name.startswith(".")]
    found += [Item(p, "the report on data that were refused") for p in _folders(data) if p.name.endswith("-refused")]
    finished = {root / entry.output for entry in entries.values()}
    for folder in _below(root / "stages"):
        for path in _below(folder):
            if path.name.startswith("superseded-"):
                found.append(Item(path, "replaced by a later result"))
            elif path.name == ARRIVING and folder / "output" in finished:
                found.append(Item(path, "of a transfer from the store that was broken off"))
            elif path.name == ".publishing":
                found.append(Item(path, "a result that was never published"))
            elif path.name == "work" and folder / "output" in finished:
                found.append(Item(path, "native checkpoints of a stage that is finished"))
    return found


def unfinished(root: Path, entries: Mapping[str, Entry]) -> list[Item]:
    """Stages that were begun and are not in the ledger, and what was read of data and is in no prepared folder."""
    finished = {(root / entry.output).parent for entry in entries.values()}
    found = [
        Item(p, "begun and not finished; its recipe would continue it")
        for p in _below(root / "stages")
        if p not in finished
    ]
    used = {root / DATA / name for file in (root / DATA).glob("*/prepared.json") for name in _made_from(file)}
    for kind in ("parts", "portions"):
        spare = [p for p in _folders(root / DATA / kind) if p not in used and not p.name.startswith(".")]
        found += [Item(p, "read, and in no prepared data; synergy data prepare would use it again") for p in spare]
    return found


def _made_from(file: Path) -> list[str]:
    """What ``synergy data prepare`` says that a folder was made from."""
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["made_from"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def unneeded(root: Path, entries: Mapping[str, Entry], needed: Collection[str]) -> list[Item]:
    """Finished stages whose keys are not needed."""
    return [
        Item((root / entry.output).parent, f"{entry.name} ({entry.kind}), which none of the recipes needs")
        for key, entry in entries.items()
        if key not in needed and (root / entry.output).parent.is_dir()
    ]


def freed(items: Sequence[Item]) -> int:
    """Bytes that come free: a file with other hard links elsewhere (checkpoints are linked, not copied) frees nothing."""
    links: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in {file for item in items for file in _files(item.path)}:
        stat = file.lstat()
        inode = (stat.st_dev, stat.st_ino)
        links[inode] += 1
        sizes[inode] = (stat.st_nlink, stat.st_blocks * 512)
    return sum(size for inode, (there, size) in sizes.items() if links[inode] >= there)


def remove(root: Path, items: Sequence[Item]) -> None:
    """Deletes them. Raises UserError while a driver works there, or data are prepared."""
    with ExitStack() as held:
        try:
            held.enter_context(lock.held(root))
            if (root / DATA).is_dir():
                held.enter_context(FileLock(root / DATA / ".lock", timeout=0))
        except (UserError, Timeout) as error:
            why = f"data are prepared in {root}; wait for it" if isinstance(error, Timeout) else error
            raise UserError(f"nothing was deleted: {why} (synergy status {root})") from error
        take(root, items)


def take(root: Path, items: Sequence[Item]) -> None:
    """The same, for the driver that holds the lock."""
    for item in items:
        if item.entry is not None:
            note(item.path.parent, item.entry, item.path.parent / "output")
        _remove(root, item.path)


def pruned(folder: Path, entry: Entry) -> bool:
    """Whether a finished stage's checkpoint was let go on purpose: the note is of the content that the ledger names. A note
    beside an output is of a driver that was killed before it took it, or of an earlier output."""
    if (folder / "output").exists():
        return False
    try:
        told = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("content") == entry.digest


def recorded(name: str) -> bool:
    """Whether a file of a checkpoint (path below its output) stays when the checkpoint goes."""
    return any(fnmatch(name, pattern) for pattern in RECORDS) and "/" not in name


def note(folder: Path, entry: Entry, output: Path) -> None:
    """Written before the checkpoint goes: a kill in between leaves it as it was. Also of one that stays in the store, and of
    which ``output`` has the records alone."""
    records = folder / "records"
    shutil.rmtree(records, ignore_errors=True)
    for file in (file for pattern in RECORDS for file in output.glob(pattern)):
        records.mkdir(exist_ok=True)
        shutil.copy2(file, records / file.name)
    told = {"content": entry.digest, "when": time.time(), "bytes": freed([Item(output, "")])}
    machine.replace_text(folder / NOTE, json.dumps(told) + "\n")


def _remove(root: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} lies outside {root}: not deleted")
    if path.is_dir() and not path.is_symlink():
        aside = root / f"{TRASH}{os.getpid()}-{path.parent.name}-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _below(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _below(folder) if path.is_dir()]


def _files(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()] if path.is_dir() else [path]

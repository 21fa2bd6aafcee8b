"""Folders that are kept and used again, with the sums of their files.

Sums are compared with what is there. They are read again only where a file's size, time of change or inode is another one than
when they were last compared, as for checkpoints (synergy/driver/identity.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from synergy.driver import identity, manifest, scan


def seal(folder: Path, sums: Mapping[str, str], cache: Path) -> None:
    """Writes down the sums of all files of a folder, by their paths in it."""
    ordered = {name: sums[name] for name in sorted(sums, key=Path)}
    (folder / manifest.FILE).write_text(json.dumps(ordered) + "\n", encoding="utf-8")
    identity.remember(cache, identity.fingerprint(folder), _digest(folder, ordered))


def broken(folder: Path, cache: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if nothing."""
    was = manifest.read(folder)
    if was is None:
        return "its manifest is gone or damaged"
    if identity.digest(folder, cache) == _digest(folder, was):
        return None
    now = identity.sums(folder)
    now.pop(manifest.FILE, None)
    return "; ".join(manifest.differences(was, now)[:3])


def _digest(folder: Path, sums: Mapping[str, str]) -> str:
    """Of the files with these sums and the manifest itself, as ``identity.digest`` would give it."""
    whole = {**sums, manifest.FILE: scan.content((folder / manifest.FILE).read_bytes())}
    return identity.digest_of({name: whole[name] for name in sorted(whole, key=Path)})

"""Identity: the key of a stage and the digest of a folder.

A stage's key is a hash over its kind, its identity settings, the keys of the stages it builds on and the content digests of
its external inputs, the reward source, and the versions of the frameworks that run it. It is known before anything runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy import paths, stages
from synergy.driver import scan
from synergy.errors import UserError

SCHEMA = 2
"""2: content is known by its BLAKE3, three times as fast as SHA-256, which no disk waits for."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def identity(stage: stages.Stage, inputs: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides a stage's result. inputs: role -> key of the stage, or digest of the external input, behind it;
    versions: of the distributions that its frameworks compute with.

    Raises UserError for a setting that its kind does not classify.
    """
    kind = stages.kind(stage.kind)
    unknown = set(stage.settings) - kind.IDENTITY - kind.RUNTIME
    if unknown:
        raise UserError(
            f"stage {stage.name}: settings {sorted(unknown)} are neither identity nor run-time of '{stage.kind}'"
        )
    parts: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": stage.kind,
        "version": kind.VERSION,
        "settings": kind.identity(stage.settings),
        "inputs": dict(inputs),
        "packages": dict(versions),
    }
    if stage.kind in ("sample", "rl", "evaluate"):
        parts["reward"] = source_digest(paths.ROOT / "reward_fns")
    if own := stage.settings.get("reward"):
        parts["own_reward"] = {"source": _source(Path(own["path"])), "name": own["name"], "kwargs": own["kwargs"]}
    return parts


def _source(file: Path) -> str:
    """Digest of a user's reward function. Raises UserError where there is no such file."""
    try:
        return sha(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"reward.path={file}: {error.strerror}; give a Python file with compute_score(data_source, solution_str, "
            "ground_truth, extra_info, **kwargs), or null for the project's own"
        ) from error


def key(parts: Mapping[str, Any]) -> str:
    """The stage key: 64 hex digits. Raises UserError for a setting that is infinite or no number."""
    try:
        return sha(canonical(parts))
    except ValueError as error:
        raise UserError(
            f"a setting of a stage ({parts['kind']}) is infinite or no number: {parts['settings']}"
        ) from error


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """What changed between two identities, as ``path: old -> new`` lines."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{at}.{n}" if at else n)]
    return [] if old == new else [f"{at}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 24 else text[:10] + "…" + text[-4:]


def source_digest(folder: Path, pattern: str = "*.py") -> str:
    """One digest over the Python files of a folder, or those of another pattern."""
    files = sorted(folder.rglob(pattern))
    return sha("".join(f"{f.relative_to(folder)}:{sha(f.read_bytes())}\n" for f in files))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file())


def fingerprint(path: Path) -> str:
    """Cheap stand-in for the digest: names, sizes, modification times and inodes of all files. By it digests are remembered,
    so it is another one under another schema."""
    rows: list[list[Any]] = [[SCHEMA]]
    for file in _files(path):
        stat = file.stat()
        rows.append([str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return sha(canonical(rows))


def digest(path: Path, cache: Path | None = None) -> str:
    """Content digest of a file or folder, read with several threads, remembered in ``cache`` by fingerprint."""
    mark = fingerprint(path)
    known = _known(cache)
    if mark in known:
        return known[mark]
    value = _content(path, mark)
    if cache is not None:
        remember(cache, mark, value)
    return value


def remember(cache: Path, mark: str, value: str) -> None:
    """That what has this fingerprint has this digest, if the cache can be written."""
    if os.access(cache.parent, os.W_OK):
        aside = cache.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        aside.write_text(json.dumps({**_known(cache), mark: value}))
        os.replace(aside, cache)


def _known(cache: Path | None) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text()) if cache is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _content(path: Path, mark: str) -> str:
    """Read once per process as long as its fingerprint stays: many plans at once share a base model of gigabytes."""
    return digest_of(sums(path))


def sums(path: Path) -> dict[str, str]:
    """File below ``path`` -> BLAKE3 of its content, several read at a time (``scan``)."""
    files = _files(path)
    return {str(file.relative_to(path)): found.sum for file, found in zip(files, scan.read(files), strict=True)}


def digest_of(found: Mapping[str, str]) -> str:
    """The content digest of a folder whose files have these sums, in the order of their paths."""
    return sha(canonical([[name, value] for name, value in found.items()]))

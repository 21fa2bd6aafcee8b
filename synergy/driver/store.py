"""The store behind a run directory (``run.store``): finished stages, for machines that share no folder.

    entries/<key>/<digest>.json                       a finished stage; written last: what has no entry does not exist
    stages/<kind>-<key>/<digest>-<random>/output/…    its files, under a name that no other upload has
    stages/<kind>-<key>/<digest>-<random>/records/…   its card and its metrics

Object stores can neither append nor rename, so there is no ledger: each entry is one small object that never changes, named by
the stage's key and by its content. Two drivers that finish the same stage leave one entry if their results are equal, else
two, and whoever reads takes the one that was made from the inputs that it has. What arrives is compared with the entry's sums.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from filelock import FileLock

from synergy import machine
from synergy.driver import identity, ledger, manifest, publish, remote, retention, scan
from synergy.driver.ledger import Entry
from synergy.driver.remote import Remote, Unavailable
from synergy.errors import StageFailed, UserError

SCHEMA = 1
ENTRIES, STAGES = "entries", "stages"
CARD = "README.md"
GONE_SECONDS = 7 * 24 * 3600.0
"""An upload of which nothing was written for so long, and that has no entry, was broken off."""
MARK = "store.txt"
"""In a run directory: the URL of its store, for `synergy status`."""
Tell = Callable[[str, int, int], None]
"""What is being done, bytes done, and all."""
_entries: dict[tuple[str, str], Stored] = {}
"""(URL, path of an entry) -> what it says: it never changes."""


@dataclass(frozen=True)
class File:
    """Of a stored stage. size: in bytes; sum: BLAKE3, hexadecimal."""

    sum: str
    size: int


@dataclass(frozen=True)
class Stored:
    """A finished stage in a store. place: its folder there; files: of its output, in the order of its digest; records: of its
    folder, beside the output."""

    entry: Entry
    place: str
    files: Mapping[str, File]
    records: Mapping[str, File]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


def find(url: str, keys: Iterable[str]) -> dict[str, tuple[Stored, ...]]:
    """Key -> the results of that stage in the store, oldest first. Raises Unavailable."""
    there = remote.connect(url)
    wanted = list(dict.fromkeys(keys))
    with ThreadPoolExecutor(max_workers=remote.THREADS) as pool:
        found = list(pool.map(lambda key: _find(there, key), wanted))
    return {key: results for key, results in zip(wanted, found, strict=True) if results}


def _find(there: Remote, key: str) -> tuple[Stored, ...]:
    found = []
    for name in there.names(f"{ENTRIES}/{key}"):
        path = f"{ENTRIES}/{key}/{name}"
        if (there.url, path) not in _entries:
            try:
                stored = _parse(there.read(path), key)
            except FileNotFoundError:
                continue
            if stored is None:  # torn, or another version's: it may be whole the next time
                continue
            _entries[there.url, path] = stored
        found.append(_entries[there.url, path])
    return tuple(sorted(found, key=lambda one: (one.entry.started + one.entry.seconds, one.entry.digest)))


def _parse(data: bytes, key: str) -> Stored | None:
    """None for what is no entry of this key, or whose parts do not fit together."""
    try:
        raw = json.loads(data)
        entry = ledger.entry(raw["entry"])
        files, records = ({str(n): File(**f) for n, f in raw[part].items()} for part in ("files", "records"))
        place = str(raw["place"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if (
        raw.get("schema") != SCHEMA
        or entry is None
        or entry.key != key
        or not all(map(_safe, (place, *files, *records)))
    ):
        return None
    return Stored(entry, place, files, records) if _digest(files) == entry.digest else None


def _safe(name: str) -> bool:
    """Whether a name from outside stays below its folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _digest(files: Mapping[str, File]) -> str:
    return identity.digest_of({name: file.sum for name, file in files.items()})


def probe(url: str, needed: int = 0) -> None:
    """Writes a small file, reads it back and deletes it. needed: bytes that will be published; looked at where the store is a
    mounted folder, since no object store tells how much it takes. Raises Unavailable or UserError."""
    there = remote.connect(url)
    path, data = f".probe-{secrets.token_hex(8)}", secrets.token_bytes(64)
    there.write(path, data)
    try:
        back = there.read(path)
    except FileNotFoundError:
        back = b""
    finally:
        there.remove(path)
    if back != data:
        raise UserError(
            f"run.store={url} gives back other bytes than it was given ({len(back)} for {len(data)}). Old S3 servers store the "
            "checksums of new clients as content: export AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        )
    stat = os.statvfs(there.root) if url.startswith(remote.LOCAL) else None
    if stat is not None and (room := stat.f_bavail * stat.f_frsize) < needed:
        raise UserError(
            f"run.store={url} has {room / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB will be published there; free "
            "some, or set run.store to another"
        )


def send(url: str, root: Path, entry: Entry, tell: Tell) -> Stored:
    """Publishes a finished stage of a run directory. Raises StageFailed, or UserError where its output is not what the ledger
    says; whatever is killed when, the store has it whole or not at all."""
    folder = (root / entry.output).parent
    sums = manifest.read(folder)
    if sums is None or identity.digest_of(sums) != entry.digest:
        sums = identity.sums(folder / "output")
    if identity.digest_of(sums) != entry.digest:
        raise UserError(f"{folder / 'output'} is not what was published ({manifest.told(folder)}): not sent to {url}")
    files = {name: File(sha, (folder / "output" / name).stat().st_size) for name, sha in sums.items()}
    beside = [name for name in (CARD, entry.figures.get("metrics")) if name and (folder / name).is_file()]
    records = {name: File(scan.one(folder / name).sum, (folder / name).stat().st_size) for name in beside}
    place = f"{STAGES}/{folder.name}/{entry.digest[:12]}-{secrets.token_hex(6)}"
    goes = [(folder / "output" / name, f"{place}/output/{name}") for name in files]
    goes += [(folder / name, f"{place}/records/{name}") for name in records]
    plain = replace(entry, fingerprint="")  # of this machine's inodes
    text = {"schema": SCHEMA, "place": place, "entry": asdict(plain)}
    text |= {"files": {n: asdict(f) for n, f in files.items()}, "records": {n: asdict(f) for n, f in records.items()}}
    path = f"{ENTRIES}/{entry.key}/{entry.digest}.json"
    try:
        there = remote.connect(url)
        there.upload(goes, lambda done, total: tell("sending to the store", done, total))
        there.write(path, json.dumps(text, indent=1).encode())
    except (Unavailable, OSError) as error:
        raise StageFailed(
            f"stage {entry.name} [machine]: it is finished and in {folder}, but could not be sent to the store: {error}. "
            "The same synergy command sends it, and goes on from there"
        ) from error
    _entries[url, path] = Stored(plain, place, files, records)
    return _entries[url, path]


def pull(url: str, stored: Stored, folder: Path, tell: Tell, whole: bool = True) -> Entry:
    """Brings a stored stage into its folder of a run directory, once per machine: whoever comes second waits, and finds it.
    whole: else its records alone, as of a checkpoint that was let go. Returns its ledger entry here.

    Raises StageFailed, which names the object, for one that is not what was published, however often it is read.
    """
    there, entry = remote.connect(url), stored.entry
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".pulling"):
        output, aside = folder / "output", folder / retention.ARRIVING
        whole = whole or output.exists()
        if not output.exists() or identity.digest_of(identity.sums(output)) != entry.digest:
            if not identity.sums(aside / "output").keys() <= stored.files.keys():  # another result's, broken off
                shutil.rmtree(aside)
            names = [name for name in stored.files if whole or retention.recorded(name)]
            _arrive(there, stored, aside / "output", "output", {name: stored.files[name] for name in names}, tell)
            if whole:
                was = folder / f"superseded-{secrets.token_hex(4)}"
                sums = publish.publish(aside / "output", output, was, named=True)
                if identity.digest_of(sums) != entry.digest:
                    odd = manifest.differences({name: file.sum for name, file in stored.files.items()}, sums)
                    raise StageFailed(
                        f"stage {entry.name} [machine]: {output} is not what was fetched: {'; '.join(odd[:3])}. The same "
                        "synergy command fetches it again; if that ends so too, set run.dir to another disk"
                    )
            else:
                retention.note(folder, entry, aside / "output")
        _arrive(there, stored, folder, "records", stored.records, tell)
        shutil.rmtree(aside, ignore_errors=True)
    return replace(entry, fingerprint=identity.fingerprint(output) if output.exists() else "")


def _arrive(there: Remote, stored: Stored, folder: Path, part: str, files: Mapping[str, File], tell: Tell) -> None:
    """Files of a stored stage, each compared with its sum; one that differs is fetched once more."""
    folder.mkdir(parents=True, exist_ok=True)
    for again in (False, True, None):
        left = _wrong(folder, files)
        if not left:
            return
        if again is None:
            break
        what = "fetching from the store" + (" once more" if again else "")
        goes = [(f"{stored.place}/{part}/{name}", folder / name, file.size) for name, file in left.items()]
        try:
            there.download(goes, lambda done, total, what=what: tell(what, done, total))  # type: ignore[misc]
        except (Unavailable, OSError) as error:
            raise StageFailed(
                f"stage {stored.entry.name} [machine]: could not be fetched from the store: {error}"
            ) from error
    entry, path = stored.entry, f"{stored.place}/{part}/{next(iter(left))}"
    raise StageFailed(
        f"stage {entry.name} [machine]: {there.url}/{path} is damaged or gone: it is not what was published. Put it back, or "
        f"delete {there.url}/{ENTRIES}/{entry.key}/{entry.digest}.json, and the same synergy command makes the stage anew"
    )


def _wrong(folder: Path, files: Mapping[str, File]) -> dict[str, File]:
    """Those of the files that are not there as they should be."""
    there = [n for n, file in files.items() if (folder / n).is_file() and (folder / n).stat().st_size == file.size]
    sums = dict(zip(there, (found.sum for found in scan.read([folder / name for name in there])), strict=True))
    return {name: file for name, file in files.items() if sums.get(name) != file.sum}


@dataclass(frozen=True)
class Left:
    """An upload that no entry names. files: paths below the store; written: its newest one (Unix time)."""

    place: str
    files: tuple[str, ...]
    size: int
    written: float


def left_over(url: str) -> tuple[list[Left], list[str]]:
    """Uploads that were broken off, or whose result was there already; not those that may still go on. And the entries that do
    not tell which upload is theirs: of their stages, all stay. Raises Unavailable."""
    there = remote.connect(url)
    found: dict[str, Left] = {}
    for file, (size, written) in remote.walk(there, STAGES).items():
        place = "/".join(file.split("/")[:3])
        was = found.get(place, Left(place, (), 0, 0.0))
        found[place] = Left(place, (*was.files, file), was.size + size, max(was.written, written))
    keys = there.names(ENTRIES)  # asked last: what was finished meanwhile is among them
    with ThreadPoolExecutor(max_workers=remote.THREADS) as pool:
        named = [pair for pairs in pool.map(lambda key: _named(there, key), keys) for pair in pairs]
    torn = [path for path, place in named if place is None]
    kept, ends = {place for _, place in named}, tuple(f"-{path.split('/')[1][:12]}" for path in torn)
    old = [left for left in found.values() if time.time() - left.written > GONE_SECONDS and left.place not in kept]
    return [left for left in old if not left.place.split("/")[1].endswith(ends)], torn


def _named(there: Remote, key: str) -> list[tuple[str, str | None]]:
    """Entries of a key, of whatever version, and the upload that each names; None where it can't be read."""
    found: list[tuple[str, str | None]] = []
    for name in there.names(f"{ENTRIES}/{key}"):
        path = f"{ENTRIES}/{key}/{name}"
        try:
            place = "/".join(json.loads(there.read(path))["place"].split("/")[:3])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            place = ""
        found.append((path, place if place.startswith(f"{STAGES}/") else None))
    return found


def delete(url: str, left: Left) -> None:
    for file in left.files:
        remote.connect(url).remove(file)


def remember(root: Path, url: str) -> None:
    """Writes down, in a run directory, which store is behind it."""
    if not (root / MARK).exists() or (root / MARK).read_text().strip() != url:
        machine.replace_text(root / MARK, url + "\n")


def remembered(root: Path) -> str | None:
    try:
        return (root / MARK).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None

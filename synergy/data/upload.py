"""Upload of a data set folder to the Hugging Face hub: what belongs to it, what must not go, and the way there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from synergy.data import datacard, records, selection
from synergy.driver import private
from synergy.errors import UserError

ENDPOINT = "https://huggingface.co"
BESIDE = (selection.REPORT, selection.DROPPED, "figures.json", "LICENSE", ".gitattributes")
"""May lie beside the data."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SECRET = re.compile(private.shapes(texts=True).encode())
CHUNK, OVERLAP = 1 << 24, 256
PATIENCE = 300.0
"""Seconds without a byte from the hub after which it counts as gone; the client itself would wait for ever."""


@dataclass(frozen=True)
class Target:
    """A data set on the hub. message: of the commit; empty: one that says what it is."""

    repo: str
    private: bool = True
    revision: str = "main"
    message: str = ""


@dataclass(frozen=True)
class Listing:
    """A folder's files, all of which may go. parts: what they are -> their names. size: bytes. license: as the card says."""

    folder: Path
    parts: Mapping[str, list[str]]
    size: int
    license: str | None

    @property
    def files(self) -> list[str]:
        return [name for names in self.parts.values() for name in names]


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")


def listing(folder: Path) -> Listing:
    """What of a folder goes. Raises UserError for a folder that is no data set, a file that belongs to none, a name that leaves
    the folder, a link, or what looks like a secret."""
    if not (folder / datacard.FILE).is_file():
        raise UserError(
            f"{folder} has no {datacard.FILE}: give the folder of a data set, as recipe=distill ends with one"
        )
    front = _front(folder / datacard.FILE)
    data = _data_files(front, folder)
    images = {name: None for file in data for name in _images(folder / file)}
    there = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not _plain_folder(path)]
    parts = {
        "card": [datacard.FILE],
        "data files": data,
        "images": list(images),
        "reports": [name for name in BESIDE if name in there],
    }
    listed = {name for names in parts.values() for name in names}
    if missing := sorted(listed - set(there)):
        raise UserError(f"{folder}: {_named(missing)} {_is(missing)} named by the card or a record, and not there")
    if links := [name for name in there if (folder / name).is_symlink()]:
        raise UserError(f"{folder}: {_named(links)} {_is(links)} a link, which may lead anywhere; copy what it means")
    if other := [name for name in there if name not in listed]:
        raise UserError(
            f"{folder}: {_named(other)} {_is(other)} no part of the data set; move it away, or name it in the card's data_files"
        )
    for name in sorted(listed):
        _no_secret(folder / name)
    size = sum((folder / name).stat().st_size for name in listed)
    return Listing(folder, parts, size, str(front["license"]) if front.get("license") else None)


def _plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _is(names: list[str]) -> str:
    return "are" if names[1:] else "is"


def _front(card: Path) -> Mapping[str, object]:
    """The YAML at the head of a card."""
    found = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        front = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise UserError(f"{card}: its head is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(front, dict):
        raise UserError(f"{card}: it has no head of YAML between two lines '---', which the hub reads")
    return front


def _data_files(front: Mapping[str, object], folder: Path) -> list[str]:
    try:
        configs = front["configs"]
        names = [_inside(file["path"], folder) for one in configs for file in one["data_files"]]  # type: ignore[attr-defined]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / datacard.FILE}: its head names no data files; wanted is configs: [{{config_name: default, "
            "data_files: [{split: train, path: train.jsonl}]}]"
        ) from error
    return list(dict.fromkeys(names))


def _inside(name: object, folder: Path) -> str:
    """A path below the folder, as given. Raises UserError for any other."""
    parts = PurePosixPath(str(name)).parts
    if not isinstance(name, str) or not parts or name.startswith("/") or any(p.startswith(".") for p in parts):
        raise UserError(f"{folder}: {name!r} is no path inside the folder without hidden parts")
    return PurePosixPath(name).as_posix()


def _images(file: Path) -> Iterator[str]:
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: data files are JSON lines of records, with the suffix .jsonl")
    for where, row in records.lines(file):
        for name in records.parse(row, where).images:
            if not name.lower().endswith(IMAGES):
                raise UserError(f"{where}: image {name!r} has none of the suffixes {', '.join(IMAGES)}")
            yield _inside(name, file.parent)


def _no_secret(file: Path) -> None:
    tail = b""
    with file.open("rb") as stream:
        while piece := stream.read(CHUNK):
            if found := SECRET.search(tail + piece):
                raise UserError(f"{file}: holds what looks like a secret ({found[0][:6].decode()}…); take it out")
            tail = piece[-OVERLAP:]


def send(found: Listing, target: Target) -> str:
    """Makes the repository if it is not there, uploads the folder, and looks that all of it arrived; the commit's address.

    Raises UserError: no token, no rights, no hub in reach, a repository that is public where a private one is asked for.
    """
    try:
        from huggingface_hub import HfApi, get_session, get_token
    except ImportError as error:
        raise UserError("uploads need the package huggingface_hub: run `make setup`") from error
    if not get_token():
        raise UserError("no token for the hub: set HF_TOKEN to one with write access, or run `hf auth login`")
    api, kind = HfApi(endpoint(), library_name="synergy"), "dataset"
    message = target.message or f"Upload {len(found.files)} files with Synergy"
    get_session().timeout = PATIENCE
    with _told(target):
        api.create_repo(target.repo, repo_type=kind, private=target.private, exist_ok=True)
        if target.private and api.repo_info(target.repo, repo_type=kind).private is False:
            raise UserError(f"{target.repo} is there already and public: say private=false if that is meant")
        if target.revision != "main":
            api.create_branch(target.repo, branch=target.revision, repo_type=kind, exist_ok=True)
        done = api.upload_folder(
            repo_id=target.repo,
            folder_path=found.folder,
            repo_type=kind,
            revision=target.revision,
            commit_message=message,
        )
        arrived = set(api.list_repo_files(target.repo, repo_type=kind, revision=target.revision))
    if missing := sorted(set(found.files) - arrived):
        raise UserError(
            f"{target.repo}: {_named(missing)} did not arrive, though the hub reported no error; push again"
        )
    return str(done.commit_url)


@contextmanager
def _told(target: Target) -> Iterator[None]:
    """The hub client's errors as messages that say what to do."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    advice = {
        401: "the hub does not know this token; make a new one, set HF_TOKEN or run `hf auth login`",
        403: f"this token may not write to {target.repo}; it needs write access there",
        404: "no such repository or branch, or this token may not see it",
        409: "someone else changed it at the same time; push again",
        429: "too many requests; wait, and push again",
    }
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        what = advice.get(code, "the same command continues, if the hub's trouble passes")
        raise UserError(f"{target.repo}: {what} (HTTP {code}: {str(error).splitlines()[0]})") from error
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{endpoint()} can't be reached ({type(error).__name__}); check the network and HF_ENDPOINT, and push again"
        ) from error
    except (ValueError, RuntimeError) as error:  # the card, by the hub's own check; one file's upload
        told = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise UserError(f"{target.repo}: {told}; what arrived is kept, and the same command sends the rest") from error

"""``synergy push FOLDER repo=user/name``: a data set that recipe=distill made, to the Hugging Face hub.

  synergy push FOLDER repo=user/name            says what would go where, and sends nothing
  synergy push FOLDER repo=user/name --yes      sends it; the repository is made if it is not there, and is private
  synergy push RUN repo=user/name               the newest data set of a run directory, unless it was changed since
  … private=false revision=BRANCH message="…"   a public repository, another branch than main, the commit's message

Only what belongs to the data set goes: the card, the files that it names, the images that their records name, and the
selection's report. Anything else in the folder, and anything that looks like a secret, is refused by name. The token is that
of HF_TOKEN or of `hf auth login`, nowhere else; HF_ENDPOINT may name another hub. A broken upload is continued by the same
command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synergy import cli
from synergy.data import upload
from synergy.driver import ledger, manifest
from synergy.driver.externals import HUB_NAME
from synergy.errors import UserError

YES = "--yes"
WORDS = ("repo", "private", "revision", "message")


@dataclass(frozen=True)
class Request:
    """folder: of the data set; act: send it; the rest: as the hub calls it."""

    folder: Path
    target: upload.Target
    act: bool


def parse(words: Sequence[str]) -> Request:
    """Raises UserError for words that name no folder or repository, or that bring a token."""
    act = YES in words
    places = [word for word in words if "=" not in word and word != YES]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "token" in given:
        raise UserError(
            "a token has no place on a command line, where others can read it: set HF_TOKEN, or `hf auth login`"
        )
    if unknown := [*(name for name in given if name not in WORDS), *(w for w in places if w.startswith("-"))]:
        raise UserError(f"{', '.join(unknown)}: push takes a folder, {', '.join(f'{w}=…' for w in WORDS)} and {YES}")
    if len(places) != 1:
        raise UserError(f"give one folder, that of a data set or a run directory, not {' '.join(places) or 'none'}")
    repo, private = given.get("repo", ""), given.get("private", "true").lower()
    if not HUB_NAME.fullmatch(repo):
        raise UserError(f"repo={repo}: give the data set's name on the hub, as repo=user/name")
    if private not in ("true", "false"):
        raise UserError(f"private={private}: true or false")
    target = upload.Target(repo, private == "true", given.get("revision", "main"), given.get("message", ""))
    return Request(_data_set(Path(places[0]).expanduser().resolve()), target, act)


def _data_set(folder: Path) -> Path:
    """The folder, or the newest data set of a run directory. Raises UserError for one without, or where it was damaged."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: give that of a data set, as recipe=distill ends with one, or a run directory"
        )
    if not (folder / "ledger.jsonl").exists():
        return folder
    entries = ledger.read(folder / "ledger.jsonl").values()
    made = [entry for entry in entries if entry.identity.get("settings", {}).get("part") == "distill"]
    if not made:
        raise UserError(f"{folder}: no data set was made there; synergy run recipe=distill run.dir={folder} makes one")
    if wrong := manifest.verify(folder, made[-1].output, made[-1].digest):
        raise UserError(f"{wrong}. Copy the folder and push the copy, or let recipe=distill make it anew")
    return folder / made[-1].output


def action(request: Request) -> None:
    """Says what goes, and sends it if that is wanted."""
    found = upload.listing(request.folder)
    told = f"{len(found.files)} files, {found.size / 1e6:,.1f} MB, of {request.folder}"
    kinds = [f"{len(names)} {what}" for what, names in found.parts.items() if names]
    where = f"{upload.endpoint()}/datasets/{request.target.repo}, branch {request.target.revision}"
    print(f"{told}\n  {', '.join(kinds)}\n  to {where}, {'private' if request.target.private else 'public'}")
    if not found.license:
        print("  its card states no licence: recipe.license=…, or `license:` at the head of README.md")
    if not request.act:
        print(f"nothing was sent; the same command with {YES} does it")
        return
    print(f"done: {upload.send(found, request.target)}")


def main() -> int:
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    return cli.ended(lambda: action(parse(words)))


if __name__ == "__main__":
    sys.exit(main())

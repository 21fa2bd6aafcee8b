"""Puts a finished result in its place: whole or not at all, whatever is killed when.

On a local disk that is one rename of a folder. Mounts of object stores and some network file systems refuse to rename a folder,
or copy it file by file; there the files are copied and read back, and ``manifest.json``, written last, is the marker: an
output without it was never finished, and no ledger line can name it.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from synergy.driver import identity, manifest
from synergy.errors import StageFailed

NO_RENAME = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def publish(aside: Path, output: Path, superseded: Path, named: bool) -> dict[str, str]:
    """``aside`` becomes ``output``. What was there goes to ``superseded``, but for an equal result, and one that was never
    finished: those go altogether. named: whether a ledger line names what was there. Returns the sums of the files, which
    stand in the manifest beside them. Raises StageFailed when the file system lost some.
    """
    sync(aside)
    sizes, marker = _sizes(aside), output.parent / manifest.FILE
    if output.exists():
        goes = not (named or marker.exists()) or identity.sums(output) == identity.sums(aside)
        marker.unlink(missing_ok=True)  # it must never vouch for another output, or for half of this one
        if goes:
            shutil.rmtree(output)
        else:
            move(output, superseded)
    move(aside, output)
    if _sizes(output) != sizes:
        raise StageFailed(f"{output} [machine]: the file system lost files in a rename; set run.dir to another")
    sums = manifest.write(output.parent)
    sync_file(marker)
    sync_folder(output.parent)
    return sums


def move(source: Path, target: Path) -> None:
    """Renames a folder; where that can't be done at once, copies it, waits until it is on disk, and deletes the source."""
    try:
        source.rename(target)
    except FileNotFoundError:
        if source.exists() or not target.exists():  # else NFS did it, lost the answer, and asked again
            raise
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        shutil.copytree(source, target)
        sync(target)
        shutil.rmtree(source)


def _sizes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def sync(folder: Path) -> None:
    """Waits until a folder is on disk with all that is in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
        else:
            sync_folder(path)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems sync files only
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)

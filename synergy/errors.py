"""The two ways in which a command ends badly on purpose. Anything else is a fault of ours and shows its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: one message that says what, where and the way out. No traceback; exit code 2."""


class StageFailed(Exception):
    """A framework died, hung or produced something unusable; the message carries its last lines. Exit code 1. folder: of the
    stage that failed, where it was one."""

    folder: Path | None = None


class Passing(StageFailed):
    """A failure of the machine's that may be gone at the next attempt."""


def near(name: str, known: Iterable[str], before: str = "") -> str:
    """The end of a message about a name that is not known: the closest that are, each after ``before``; or nothing."""
    found = [before + one for one in difflib.get_close_matches(name, list(known), n=3)]
    return f"; did you mean {', '.join(found)}?" if found else ""

"""The two ways in which a command ends badly on purpose. Anything else is a fault of ours and shows its traceback."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something the user can mend: one message that says what, where and the way out. No traceback; exit code 2."""


class StageFailed(Exception):
    """A framework died, hung or produced something unusable; the message carries its last lines. Exit code 1. folder: of the
    stage that failed, where it was one."""

    folder: Path | None = None


class Passing(StageFailed):
    """A failure of the machine's that may be gone at the next attempt."""

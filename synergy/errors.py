"""The two ways in which a command ends badly on purpose. Anything else is a fault of ours and shows its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: one message that says what, where and the way out. No traceback; exit code 2."""


class StageFailed(Exception):
    """A framework died, hung or produced something unusable; the message carries its last lines. Exit code 1."""

"""Ctrl-C and SIGTERM, of which none is lost: Python drops what is raised while it forks ("Exception ignored in ..."), so a
signal is remembered beside its exception, and long work asks about once a second."""

from __future__ import annotations

import signal
from typing import Any

_asked = False


def listen() -> None:
    """Both signals raise KeyboardInterrupt from now on. SIGINT stays ignored where a shell ignores it for its background."""
    global _asked
    _asked = False
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Raises KeyboardInterrupt once a signal came."""
    if _asked:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt

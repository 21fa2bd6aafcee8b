"""How numbers are written, in one place for the page, the Markdown and the figures. None is written as a dash."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synergy.driver.sharing import Saving

NONE = "–"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def percent(value: float | None, std: float | None = None) -> str:
    """Percent with one decimal, and its standard deviation if there is one: ``41.2 ± 0.8``."""
    if not _known(value):
        return NONE
    return f"{value:.1f}" + (f" ± {std:.1f}" if _known(std) else "")


def share(value: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 in percent; what is small but not zero doesn't look like zero."""
    if value is None or not math.isfinite(value):
        return NONE
    return "<0.1 %" if 0 < value < 0.001 else f"{100 * value:.{digits}f} %"


def between(value: float | None, low: float | None, high: float | None) -> str:
    """Percent, and the interval if there is one: ``41.2 [38.0, 44.1]``."""
    ends = f" [{percent(low)}, {percent(high)}]" if _known(low) and _known(high) else ""
    return percent(value) + ends


def gain(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Points of accuracy with sign, and the interval if there is one: ``+5.1 [+2.0, +8.3]``."""
    if not _known(value):
        return NONE
    ends = f" [{signed(low)}, {signed(high)}]" if _known(low) and _known(high) else ""
    return signed(value) + ends


def signed(value: float | None, std: float | None = None) -> str:
    """One decimal with its sign, and the standard deviation if there is one; a typographic minus, and no sign for what rounds
    to zero."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.1f}".replace("-", "−")
    return ("0.0" if text in ("+0.0", "−0.0") else text) + (f" ± {std:.1f}" if _known(std) else "")


def tokens(mean: float | None, std: float | None = None) -> str:
    """Tokens: a decimal below 100, thousands set apart above."""
    if mean is None or not math.isfinite(mean):
        return NONE
    digits = 1 if abs(mean) < 100 else 0
    return f"{mean:,.{digits}f}" + (f" ± {std:,.{digits}f}" if _known(std) else "")


def figure(value: float | None) -> str:
    """A loss or a reward."""
    return f"{value:.3f}" if _known(value) else NONE


def count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def seconds(value: float) -> str:
    """``7.4 s``, ``1 min 15 s``, ``2 h 05 min``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int) -> str:
    """Bytes in GB (10^9), or MB below one; zero: not measured."""
    if size <= 0:
        return NONE
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def times(ratio: float) -> str:
    """``0.7 times``, ``12 times``."""
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def saving(found: Saving, jobs: int) -> str:
    """What sharing saves, in a sentence; a time only as far as the ledger knows it."""
    text = f"{found.stages} stages in {jobs} jobs, {found.distinct} of them distinct: sharing saves {found.saved}"
    if found.timed:
        text += f", about {seconds(found.seconds)} by the times in the ledger"
        text += "" if found.timed == found.saved else f" (which has those of {found.timed})"
    return text

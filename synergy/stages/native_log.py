"""What a framework logs as it trains, a JSON object a line: LLaMA-Factory's trainer_log.jsonl, verl's file logger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Of a file that may be written to at the moment; none of one that is not there."""
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the line being written
            continue

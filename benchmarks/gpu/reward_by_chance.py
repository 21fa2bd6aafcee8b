"""A reward for random weights, whose responses are never right: one response in eight is called right, by its checksum."""

from __future__ import annotations

import zlib
from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **kwargs: Any
) -> float:
    return float(zlib.crc32(f"{extra_info['id']}{solution_str}".encode()) % 8 == 0)

"""Whether a JPEG is whole, without the cost of decoding it: most of that goes into undoing its Huffman code, bit by bit."""

from __future__ import annotations

import re
from typing import NamedTuple

_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker in coded data that ends them: stuffed zeros and restarts belong to them."""
SEQUENTIAL, SCAN, END, REMARKS = (0xC0, 0xC1), 0xDA, 0xD9, (*range(0xE0, 0xF0), 0xFE)
SAMPLE = 512
"""Bytes of coded data that are decoded: with them the decoder has built every table."""


class Whole(NamedTuple):
    """A JPEG that is whole. head: its tables and components, but for the sides, in pixels. sample: a small JPEG of the header
    and the first coded bytes, for a decoder to try; equal heads need one try."""

    width: int
    height: int
    head: bytes
    sample: bytes


def whole(data: bytes) -> Whole | None:
    """None where only decoding all of it would tell.

    Whole: the segments before its one scan fit each other, and the coded data end with the marker that ends the file. Errors
    within the coded data are no errors to libjpeg, which warns and goes on; so nothing that Pillow refuses passes here.
    """
    at, width, height, head = 2, 0, 0, []
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if size < 2 or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= END:
            return None
        segment = data[at : at + 2 + size]
        at += 2 + size
        if marker in SEQUENTIAL:
            height, width = (int.from_bytes(segment[n : n + 2], "big") for n in (5, 7))
            segment = segment[:5] + segment[9:]
        if marker not in REMARKS or segment[4:9] == b"Adobe":  # whose remark says how colours are written
            head.append(segment)
        if marker == SCAN:
            end = _NEXT.search(data, at)
            if not width * height or end is None or data[end.start() + 1] != END:
                return None
            return Whole(width, height, b"".join(head), data[: min(at + SAMPLE, end.start())] + b"\xff\xd9")
    return None

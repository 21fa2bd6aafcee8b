"""Whether a JPEG is whole, without the cost of decoding it: most of that goes into undoing its Huffman code, bit by bit."""

from __future__ import annotations

import re

_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker in coded data that ends them: stuffed zeros and restarts belong to them."""
SEQUENTIAL = (0xC0, 0xC1)
SCAN, END = 0xDA, 0xD9
SAMPLE = 512
"""Bytes of coded data that are decoded: with them the decoder has built every table."""


def sample(data: bytes) -> bytes | None:
    """A small JPEG with the header and the first coded bytes of one that is whole, for a decoder to try; None where only
    decoding all of it would tell.

    Whole: the segments before its one scan fit each other, and the coded data end with the marker that ends the file. Errors
    within the coded data are no errors to libjpeg, which warns and goes on; so nothing that Pillow refuses passes here.
    """
    at, sequential = 2, False
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if size < 2 or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= END:
            return None
        at += 2 + size
        sequential |= marker in SEQUENTIAL
        if marker == SCAN:
            end = _NEXT.search(data, at)
            if not sequential or end is None or data[end.start() + 1] != END:
                return None
            return data[: min(at + SAMPLE, end.start())] + b"\xff\xd9"
    return None

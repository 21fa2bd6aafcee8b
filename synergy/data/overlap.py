"""Training questions that a benchmark asks too: by their words, and by a perceptual hash of their images."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synergy.data.part import Part
from synergy.data.problems import Problem
from synergy.data.readers.pictures import SIDE

NEAR = 0.85
"""Least share of the bits set in either of two hashes that both have set, for their images to be the same."""
PLAIN = 24
"""Images with fewer bits set, such as a line on white, are the same only if their bytes are."""
AT_ONCE = 256


class Index:
    """The questions of the benchmarks, from their parts: some megabytes for ten thousand."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.texts: dict[str, list[int]] = {}
        self.places: list[str] = []
        self.names: dict[str, int] = {}
        self.owners: list[int] = []
        hashes: list[str] = []
        for part in parts:
            for row in part.rows():
                if row["record"] is None:
                    continue
                number = len(self.places)
                self.places.append(f"{part.source.name} {row['record']['id'] or row['where']}")
                self.texts.setdefault(words(row["record"]), []).append(number)
                for name, _, _, mark in row["images"]:
                    self.names.setdefault(name, number)
                    self.owners.append(number)
                    hashes.append(mark)
        self.bits = _bits(hashes)
        self.sums = self.bits.sum(axis=1)
        self.with_images = set(self.owners)

    def check(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem | None]:
        """What each row has in common with a benchmark, or None. A question with an image is the same one only if the image
        is too: "How long is AB?" alone says nothing."""
        import numpy as np

        hashes = [(i, mark) for i, row in enumerate(rows) for _, _, _, mark in row["images"]]
        near: dict[int, list[int]] = {}
        if hashes and len(self.bits):
            mine = _bits([mark for _, mark in hashes])
            both = mine @ self.bits.T
            either = mine.sum(axis=1)[:, None] + self.sums[None, :] - both
            for one, other in np.argwhere((both >= NEAR * either) & (either >= PLAIN)):
                near.setdefault(hashes[one][0], []).append(self.owners[other])
        for i, row in enumerate(rows):
            owners = near.get(i, []) + [self.names[name] for name, *_ in row["images"] if name in self.names]
            same = self.texts.get(words(row["record"]), [])
            seen = [n for n in same if n in owners or (not row["images"] and n not in self.with_images)]
            if seen:
                yield Problem("overlap", "question", f"is asked by {self.places[seen[0]]} too")
            elif owners:
                yield Problem("overlap_image", "images", f"shows what {self.places[owners[0]]} shows")
            else:
                yield None


def words(record: Mapping[str, Any]) -> str:
    """The question and its choices without case, punctuation and marks; signs and digits of formulas stay."""
    text = "\n".join([record["question"], *(record["choices"] or {}).values()])
    text = unicodedata.normalize("NFKC", re.sub(r"<image ?\d*>", " ", text)).casefold()
    return " ".join(re.findall(r"\w+|[+\-*/^=<>\\{}]", text))


def _bits(hashes: Sequence[str]) -> Any:
    import numpy as np

    raw = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), SIDE * SIDE // 4)
    return np.unpackbits(raw, axis=1).astype(np.float32)

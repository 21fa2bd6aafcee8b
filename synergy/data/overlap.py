"""Training questions that a benchmark or the validation split asks too: by their words, and by a perceptual hash of their
images."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.data import part
from synergy.data.problems import Problem
from synergy.data.readers import pictures

NEAR = 0.9
"""Least share of equal bits in two hashes for their images to be the same. Of 300 drawings of thin lines, scaled and saved as
JPEG, all had at least 0.96 with the original and at most 0.73 with another; different handwritten digits at most 0.80."""
AT_ONCE = 256


@dataclass(frozen=True)
class Held:
    """A part that rows are held against. images: whether an image alone is an overlap: of a benchmark it is; the splits of one
    set often ask different questions about one figure."""

    name: str
    key: str
    folder: Path
    images: bool


class Index:
    """The questions that rows are held against: some megabytes for ten thousand."""

    def __init__(self, held: Sequence[Held]) -> None:
        self.texts: dict[str, list[int]] = {}
        self.places: list[str] = []
        self.names: dict[str, int] = {}
        self.owners: list[int] = []
        self.alone: list[bool] = []
        hashes: list[str] = []
        for one in held:
            for row in part.rows_of(one.folder):
                if row["record"] is None:
                    continue
                number = len(self.places)
                self.places.append(f"{one.name} {row['record']['id'] or row['where']}")
                self.alone.append(one.images)
                self.texts.setdefault(words(row["record"]), []).append(number)
                for name, _, _, mark in row["images"]:
                    if one.images:
                        self.names.setdefault(name, number)
                    self.owners.append(number)
                    hashes.append(mark or pictures.perceptual((one.folder / name).read_bytes()))
        self.bits = _bits(hashes)
        self.with_images = set(self.owners)
        self.every = any(self.alone[number] for number in self.owners)

    def check(self, rows: Sequence[Mapping[str, Any]], media: Path) -> Iterator[Problem | None]:
        """What each row has in common with what is held here, or None. A question with an image is the same one only if the
        image is too: "How long is AB?" alone says nothing. media: where the images of rows lie."""
        asked = [self.texts.get(words(row["record"]), []) for row in rows]
        near = self._near(
            [row["images"] if self.every or same else [] for row, same in zip(rows, asked, strict=True)], media
        )
        for row, same, owners in zip(rows, asked, near, strict=True):
            seen = [n for n in same if n in owners or (not row["images"] and n not in self.with_images)]
            alone = [n for n in owners if self.alone[n]]
            if seen:
                yield Problem("overlap", "question", f"is asked by {self.places[seen[0]]} too")
            elif alone:
                yield Problem("overlap_image", "images", f"shows what {self.places[alone[0]]} shows")
            else:
                yield None

    def _near(self, images: Sequence[Sequence[Any]], media: Path) -> list[list[int]]:
        """Of each row's images the questions here that show the same."""
        import numpy as np

        near: list[list[int]] = [[] for _ in images]
        of = [i for i, some in enumerate(images) for _ in some]
        if of and len(self.bits):
            marks = [
                mark or pictures.perceptual((media / name).read_bytes()) for some in images for name, _, _, mark in some
            ]
            for one, other in np.argwhere(_bits(marks) @ self.bits.T >= (2 * NEAR - 1) * pictures.BITS):
                near[of[one]].append(self.owners[other])
        for i, some in enumerate(images):
            near[i] += [self.names[name] for name, *_ in some if name in self.names]
        return near


def words(record: Mapping[str, Any]) -> str:
    """The question and its choices without case, punctuation and marks; signs and digits of formulas stay."""
    text = "\n".join([record["question"], *(record["choices"] or {}).values()])
    text = unicodedata.normalize("NFKC", re.sub(r"<image ?\d*>", " ", text)).casefold()
    return " ".join(re.findall(r"\w+|[+\-*/^=<>\\{}]", text))


def _bits(hashes: Sequence[str]) -> Any:
    """A row of -1 and 1 for each hash; of zeros for a picture of one colour, which is like no other by its hash."""
    import numpy as np

    raw = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), pictures.BITS // 8)
    bits = np.unpackbits(raw, axis=1).astype(np.float32) * 2 - 1
    return bits * raw.any(axis=1)[:, None]

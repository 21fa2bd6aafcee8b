"""Portions to one folder for all frameworks. Text files are put together from the portions' files; images and verl's parquet,
which are nearly all of the bytes, are hard links to what is kept, so that nothing of them is written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from synergy.data import portion, writers
from synergy.data.portion import Portion
from synergy.driver import handoff, scan

SPLITS = {"train": "train.jsonl", "validation": "val.jsonl"}
RECORDS, SFT, RL, BENCHMARKS = "records", "llamafactory", "verl", "vlmevalkit"


def write(portions: Sequence[Portion], out: Path) -> dict[str, str]:
    """records/, llamafactory/, verl/ and vlmevalkit/ below ``out``; returns the sums of their files."""
    kept = [one for one in portions if sum(one.told.kept.values())]
    sums: dict[str, str] = {}
    for one in kept:
        into, name = one.part.source.into, one.part.source.name
        _append(one.files(portion.RECORDS), out / RECORDS / SPLITS.get(into, f"{name}.jsonl"))
        sums |= _images(one, out)
        for number, file in enumerate(one.files(portion.RL)):
            sums |= _link(one, file, out / RL / f"{into}-{name}-{number:05d}.parquet", out)
        for file in one.files(portion.TABLE):
            sums |= _link(one, file, out / BENCHMARKS / f"{name}.tsv", out)
    splits = [into for into in SPLITS if any(one.part.source.into == into for one in kept)]
    if splits:
        (out / SFT).mkdir()
        writers.dataset_info(out / SFT, splits)
        for into in splits:
            lines = [file for one in kept if one.part.source.into == into for file in one.files(portion.SFT)]
            _array(lines, out / SFT / f"{into}.json")
    texts = [*(out / RECORDS).glob("*.jsonl"), *(out / SFT).glob("*.json")]
    return sums | {str(file.relative_to(out)): scan.one(file).sum for file in texts}


def _append(files: Sequence[Path], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as out:
        for file in files:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)


def _array(files: Sequence[Path], target: Path) -> None:
    """Lines of JSON as the items of one array."""
    mark = "[\n "
    with target.open("w", encoding="utf-8") as out:
        for file in files:
            with file.open(encoding="utf-8") as stream:
                for line in stream:
                    out.write(mark + line.rstrip("\n"))
                    mark = ",\n "
        out.write("\n]\n" if mark[0] == "," else "[]\n")


def _images(one: Portion, out: Path) -> dict[str, str]:
    """Links the images of the records. Content is the name, so what is there already is the same."""
    sums: dict[str, str] = {}
    for file in one.files(portion.IMAGES):
        for name in file.read_text().split():
            at = f"{RECORDS}/{name}"
            if at in sums:
                continue
            sums[at] = name.rpartition("/")[2].partition(".")[0]
            if not os.path.exists(f"{out}/{at}"):
                os.makedirs(os.path.dirname(f"{out}/{at}"), exist_ok=True)
                handoff.link(one.part.folder / name, out / at)
    return sums


def _link(one: Portion, file: Path, target: Path, out: Path) -> dict[str, str]:
    target.parent.mkdir(parents=True, exist_ok=True)
    handoff.link(file, target)
    return {str(target.relative_to(out)): one.sums[file.name]}

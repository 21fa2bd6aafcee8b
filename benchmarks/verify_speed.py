"""Verification and digest of a checkpoint of gigabytes, against plain reading of the same bytes.

python benchmarks/verify_speed.py [gigabytes=3] [shards=4] [turns=5] [folder=.]   (of the training environment, or with numpy)

Makes a bfloat16 checkpoint of that size and its successor, in which half of the bytes differ, in a temporary folder below
`folder`, and deletes them. Each turn takes in another order, with two processors: reading all bytes of a checkpoint, as many
files at a time and in pieces as large as verification does; `verify.model` and the content digest (index, headers, NaN and
BLAKE3 in one pass), in a process of its own, so that nothing is remembered; and the same with the comparison to the input's
weights, which reads some of the input too. State of the page cache: the same before every measurement, either cold (all pages
of both checkpoints dropped by posix_fadvise) or warm (all read just before, and more memory free than they need).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from synergy.driver import checkpoint, handoff, identity, scan, verify  # noqa: E402

WIDTH = 2048
WAYS: dict[str, Callable[[Path, Path], object]] = {
    "read": lambda model, previous: read(model),
    "verify": lambda model, previous: (verify.model(model), identity.digest(model)),
    "verify and compare": lambda model, previous: (
        verify.model(model),
        identity.digest(model),
        handoff.count_changed(model, previous),
    ),
}


def read(model: Path) -> None:
    """Every byte once."""

    def one(file: Path) -> None:
        buffer = bytearray(scan.PIECE)
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) * 2)) as pool:
        list(pool.map(one, sorted(model.iterdir())))


def write(folder: Path, size: float, shards: int, seed: int) -> None:
    """A checkpoint of random bfloat16 matrices; of its tensors every second depends on the seed."""
    folder.mkdir()
    rows = 4096
    count = max(1, round(size / shards / (rows * WIDTH * 2)))
    names = [[f"model.layers.{shard * count + i}.weight" for i in range(count)] for shard in range(shards)]
    index = {}
    for shard, inside in enumerate(names):
        shapes = dict.fromkeys(inside, (rows, WIDTH))
        shapes |= {verify.EMBEDDING: (rows, WIDTH)} if shard == 0 else {}
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        offset, head = 0, {}
        for name, shape in shapes.items():
            end = offset + 2 * rows * WIDTH
            head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset, index[name] = end, file.name
        text = json.dumps(head).encode()
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for number, _ in enumerate(shapes):
                rng = np.random.default_rng((shard, number, seed if number % 2 else 0))
                values = rng.standard_normal(rows * WIDTH, dtype=np.float32)
                stream.write((values.view("<u4") >> 16).astype("<u2").tobytes())
            os.fsync(stream.fileno())
    (folder / checkpoint.INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))


def settle(folders: list[Path], cold: bool) -> None:
    """Drops the pages of all files, or has them all in memory."""
    for folder in folders:
        for file in folder.iterdir():
            with file.open("rb") as stream:
                if cold:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not cold:
            read(folder)


def once(way: str, model: Path, previous: Path) -> float:
    """Seconds, in a process of its own; its imports don't count."""
    told = subprocess.run(
        [sys.executable, __file__, "measure", way, str(model), str(previous)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(told.stdout)


def measure(way: str, model: Path, previous: Path) -> None:
    begin = time.perf_counter()
    WAYS[way](model, previous)
    print(time.perf_counter() - begin)


def main(argv: list[str]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if argv[:1] == ["measure"]:
        return measure(argv[1], Path(argv[2]), Path(argv[3]))
    words = dict(word.split("=", 1) for word in argv)
    size, shards, turns = (
        float(words.get("gigabytes", 3)) * 1e9,
        int(words.get("shards", 4)),
        int(words.get("turns", 5)),
    )
    with tempfile.TemporaryDirectory(dir=words.get("folder", ".")) as name:
        previous, model = Path(name) / "previous", Path(name) / "model"
        write(previous, size, shards, 0)
        write(model, size, shards, 1)
        total = sum(file.stat().st_size for file in model.iterdir()) / 1e9
        print(f"{total:.2f} GB in {shards} files, two processors, load average {os.getloadavg()[0]:.1f}")
        for cold in (True, False):
            took: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(turns):
                order = list(WAYS)
                for way in order[turn % len(order) :] + order[: turn % len(order)]:
                    settle([previous, model], cold)
                    took[way].append(once(way, model, previous))
            for way, seconds in took.items():
                ratios = sorted(a / b for a, b in zip(seconds, took["read"], strict=True))
                print(
                    f"{'cold' if cold else 'warm'}: {way} {total / median(seconds):.2f} GB/s, {median(seconds):.2f} s, ratio "
                    f"to reading {median(ratios):.2f} (median of {turns}; {ratios[0]:.2f} to {ratios[-1]:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])

"""`synergy data prepare` at the paper's size: 34,000 rows with a photograph of 448 x 448 pixels each, for both frameworks.

.envs/train/bin/python benchmarks/prepare_speed.py [rows=34000] [rounds=2] [folder=/tmp]

Makes parquet files in the layout of the hub (a JPEG of about 55 kB a row), then in turns prepares them with an empty cache
and copies the same bytes. The copy is the yardstick for the bandwidth of the disk: one thread reads once every byte that is
read and writes once every byte that was written, in files of the same names and sizes; both it and the preparation end with a
sync. Pages of the source are dropped before each. Copying makes files and fills pages, which takes processors too, so it
stands for what the file system can do for such files, not for what the disk could do for one large file; that is told beside
it. A hard link counts as no byte.

Told are the bandwidth of both and the median of their ratio by round (target: 60 %), the peak memory of all processes
together (target: 2 GB), and the seconds of an unchanged preparation, of one with one more source, and of one from nothing
that looks for the images of a benchmark of 1,000 too, for which every image is decoded.
"""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from synergy.data import writers
from synergy.data.records import Record

ROOT = Path(__file__).parents[1]
GROUP, FILE = 100, 4000
"""Rows of a row group (as ``datasets`` writes images) and of a file."""
STEP = "Angle {a} is {b} degrees, so we add {c} and look at the figure once more. Wait, is the side {b} or {c}? It is {b}. "


def photograph(rng: np.random.Generator) -> bytes:
    """Smooth shapes with some grain: a JPEG of 35 to 60 kB."""
    rough = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).resize((448, 448), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 9, (448, 448, 1))
    pixels = np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    return out.getvalue()


def make(folder: Path, rows: int) -> int:
    """The data set; returns its bytes. Every picture is another one: a comment sets those apart that share their pixels."""
    name = folder.name
    rng, words = np.random.default_rng(len(name)), random.Random(name)
    stock = [photograph(rng) for _ in range(200)]
    for first in range(0, rows, FILE):
        made: list[dict[str, Any]] = []
        for number in range(first, min(rows, first + FILE)):
            data, mark = stock[number % len(stock)], f"{name} {number}".encode()
            data = data[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + data[2:]
            answer = str(words.randint(0, 999))
            steps = "".join(STEP.format(a=words.randint(1, 9), b=words.randint(1, 90), c=answer) for _ in range(12))
            made.append(
                {
                    "id": f"{name}-{number}",
                    "question": f"How long is side {number}?",
                    "answer": answer,
                    "trace": f"<think>\n{steps}\n</think>\n\\boxed{{{answer}}}",
                    "image": {"bytes": data, "path": f"{number}.jpg"},
                }
            )
        path = folder / f"train-{first // FILE:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(made), path, row_group_size=GROUP)
    return size(folder)


def size(folder: Path) -> int:
    """Bytes of all files, each inode once."""
    told = {(s.st_dev, s.st_ino): s.st_size for s in (f.stat() for f in folder.rglob("*") if f.is_file())}
    return sum(told.values())


def forget(folder: Path) -> None:
    """Drops the pages of a folder's files, so that they come from the disk."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(run: Path, *folders: Path, against: Path | None = None) -> tuple[float, int]:
    """Seconds until all is on the disk, and the peak of the memory of all processes, shared pages counted once (PSS)."""
    listed = ", ".join(f"{{name: {folder.name}, path: {folder}}}" for folder in folders)
    words = [
        f"data.sources=[{listed}]",
        f"run.dir={run}",
        "sft.config.cutoff_len=4096",
        "rl.verl.data.max_prompt_length=1024",
        f"data.against=[{against or ''}]",
        *(["data.checks={overlap: drop, overlap_image: drop}"] if against else []),
    ]
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "synergy.data", "prepare", *words], cwd=ROOT)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], _memory(child.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    code = child.wait()
    os.sync()
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    if code:
        raise SystemExit("the preparation failed")
    return seconds, peak[0]


def _memory(pid: int) -> int:
    try:
        parent = psutil.Process(pid)
        return sum(_pss(process) for process in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def processors() -> float:
    """Seconds that finished children spent on processors."""
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime


def copy(source: Path, made: Path, target: Path) -> float:
    """Seconds to read the source once and to write what was made once, in files of the same names and sizes."""
    seen: set[int] = set()
    began = time.perf_counter()
    for file in source.rglob("*.parquet"):
        with file.open("rb") as stream:
            while stream.read(1 << 20):
                pass
    for file in made.rglob("*"):
        if file.is_file() and file.stat().st_ino not in seen:
            seen.add(file.stat().st_ino)
            place = target / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    os.sync()
    return time.perf_counter() - began


def one_file(place: Path, count: int) -> float:
    """Bytes a second of writing one file, and all of it to the disk."""
    piece = os.urandom(1 << 24)
    began = time.perf_counter()
    with place.open("wb") as stream:
        for _ in range(max(1, count // len(piece))):
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - began
    place.unlink()
    return max(1, count // len(piece)) * len(piece) / seconds


def benchmark(folder: Path, count: int) -> Path:
    """A table of so many questions with other photographs."""
    rng = np.random.default_rng(10**6)
    found = []
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(photograph(rng))
        found.append(Record(f"b{number}", f"Which angle is {number}?", "1", (f"{number}.jpg",)))
    writers.vlmevalkit(folder / "bench.tsv", found, folder)
    return folder / "bench.tsv"


def main() -> None:
    given = dict(word.split("=") for word in sys.argv[1:])
    rows, rounds = int(given.get("rows", 34000)), int(given.get("rounds", 2))
    with tempfile.TemporaryDirectory(dir=given.get("folder", "/tmp")) as name:
        root = Path(name)
        read = make(root / "train", rows)
        make(root / "more", max(1, rows // 34))
        written, times, copies, peaks = 0, [], [], []
        for number in range(rounds):
            run = root / f"run{number}"
            forget(root / "train")
            before = processors()
            seconds, peak = prepare(run, root / "train")
            spent = processors() - before
            written = size(run)
            times.append(seconds)
            peaks.append(peak)
            forget(root / "train")
            copies.append(copy(root / "train", run, root / "copy"))
            shutil.rmtree(root / "copy")
            both = read + written
            print(
                f"round {number + 1}: prepared in {seconds:.1f} s ({spent:.1f} s of processors), copied in {copies[-1]:.1f} s, "
                f"{peak / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            if number < rounds - 1:
                shutil.rmtree(run)
        again, _ = prepare(run, root / "train")
        more, _ = prepare(run, root / "train", root / "more")
        shutil.rmtree(run)
        (root / "bench").mkdir()
        table = benchmark(root / "bench", 1000)
        forget(root / "train")
        compared, _ = prepare(run, root / "train", against=table)
        slow, fast = statistics.median(times), statistics.median(copies)
        ratio = statistics.median(b / a for a, b in zip(times, copies, strict=True))
        alone = one_file(root / "one", written)
        print(f"{rows:,} rows: {read / 1e9:.2f} GB read, {written / 1e9:.2f} GB written; load {os.getloadavg()[0]:.1f}")
        print(f"prepared at {both / slow / 1e6:.0f} MB/s, copied at {both / fast / 1e6:.0f} MB/s: {ratio:.0%}")
        print(
            f"peak memory {max(peaks) / 1e9:.2f} GB; unchanged {again:.1f} s; with {rows // 34:,} more rows {more:.1f} s; "
            f"anew, held against 1,000 images, {compared:.1f} s; one file is written at {alone / 1e6:.0f} MB/s"
        )


if __name__ == "__main__":
    main()

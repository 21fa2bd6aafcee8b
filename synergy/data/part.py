"""A source, read once: its rows as ``examine`` leaves them and its images, kept by what they are made from.

A part is found again as long as its files, its settings, the instruction, and the model's tokenizer and image limits stay; so a
new source leaves the others alone. Files of rows count by content, images that rows name by size and time of change.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from synergy.data import examine, readers
from synergy.data.examine import Looked, Task
from synergy.data.readers import Source, files
from synergy.driver import identity
from synergy.errors import UserError

VERSION = 1
"""Of what is kept: raised by whoever changes how rows are read or looked at."""
ROWS, FILES, DONE = "rows.jsonl", "files.json", "part.json"
MODEL_FILES = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")

Tell = Callable[[str, int], None]
"""Called with a source's name and how many of its rows are done."""


@dataclass(frozen=True)
class Part:
    """folder: with ROWS and images/. new: made by this call."""

    source: Source
    key: str
    folder: Path
    new: bool

    def rows(self) -> Iterator[dict[str, Any]]:
        with (self.folder / ROWS).open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)


def key(source: Source, model: Path, instruction: str | None, digests: Path | None) -> str:
    """What a part is made from, in hexadecimal digits. Raises UserError for a missing path."""
    if not source.path.exists():
        raise UserError(f"data.sources {source.name}: path={source.path}: no such file or folder")
    told = {name: value for name, value in asdict(source).items() if name not in ("path", "media", "into")}
    suits = [file for file in (model / name for name in MODEL_FILES) if file.exists()]
    parts = {
        **told,
        "columns": dict(source.columns),
        "content": identity.digest(source.path, digests),
        "place": str(source.media or source.path),
        "model": [identity.digest(file, digests) for file in suits],
        "instruction": instruction,
        "version": VERSION,
    }
    return identity.sha(identity.canonical(parts))


def of_source(
    source: Source, model: Path, instruction: str | None, home: Path, workers: int, tell: Tell, images: bool = True
) -> Part:
    """The part of a source below ``home``, made unless it is there. images: whether they are kept. Raises UserError for
    files that can't be read at all."""
    name = key(source, model, instruction, home / "digests.json")
    folder = home / "parts" / f"{source.name}-{name[:12]}{'' if images else '-seen'}"
    if fresh(folder):
        return Part(source, name, folder, new=False)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        rows = _write(Task(source, model, instruction, aside if images else None), aside, workers, tell)
        (aside / DONE).write_text(json.dumps({"key": name, "rows": rows}) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror or error}); free space or set run.dir") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Part(source, name, folder, new=True)


def fresh(folder: Path) -> bool:
    """Whether a part is there, and the media files that it was read from are as they were."""
    try:
        stored = json.loads((folder / FILES).read_text(encoding="utf-8"))
        return (folder / DONE).exists() and all(
            list(examine.stamp(Path(name))) == mark for name, mark in stored.items()
        )
    except (OSError, ValueError):
        return False


def _write(task: Task, out: Path, workers: int, tell: Tell) -> int:
    total, media, last = 0, dict[str, tuple[int, int]](), 0.0
    with (out / ROWS).open("w", encoding="utf-8") as stream, _mapped(task, workers) as results:
        for looked in results:
            stream.write(looked.text)
            total += looked.rows
            media.update(looked.media)
            if time.monotonic() - last > 0.2:
                tell(task.source.name, total)
                last = time.monotonic()
    if not total:
        raise UserError(f"data.sources {task.source.name}: {task.source.path} holds no rows")
    tell(task.source.name, total)
    (out / FILES).write_text(json.dumps(media), encoding="utf-8")
    return total


@contextmanager
def _mapped(task: Task, workers: int) -> Iterator[Iterator[Looked]]:
    """``examine.work`` over all chunks, in order, few of them in memory at a time; by so many processes, or in this one."""
    chunks = readers.chunks(task.source)
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if workers < 2 or len(first) < 2:
        yield (examine.work(task, chunk) for chunk in chunks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start) as pool:
        try:
            yield _in_order(pool, task, chunks, 3 * workers)
        except BrokenProcessPool as error:
            raise UserError(
                f"data.sources {task.source.name}: a process that read it died, of memory or of an image that breaks its "
                "decoder; data.workers=1 reads row by row in this process"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _in_order(pool: ProcessPoolExecutor, task: Task, chunks: Iterator[files.Chunk], most: int) -> Iterator[Looked]:
    waiting: deque[Future[Looked]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(examine.work, task, chunk))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""The processes of one preparation, started when there is first enough for two of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Self, TypeVar

from synergy.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """So many processes, or this one alone for ``workers`` < 2 and for a single item."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], what: str) -> Iterator[Result]:
        """``work`` over all items, in order, few of them in memory at a time. what: the message's name for them. Raises
        UserError when a process dies, and whatever ``work`` and ``items`` raise."""
        items = iter(items)
        first = list(islice(items, 2))
        if self.workers < 2 or len(first) < 2:
            yield from map(work, chain(first, items))
            return
        if self.pool is None:
            self.pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_start)
        waiting: deque[Future[Result]] = deque()
        try:
            for item in chain(first, items):
                waiting.append(self.pool.submit(work, item))
                if len(waiting) >= 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{what}: a process that worked on it died, of memory or of an image that breaks its decoder; "
                "data.workers=1 works row by row in this process"
            ) from error


def _start() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism

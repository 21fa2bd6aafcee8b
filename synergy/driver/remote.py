"""Files behind a URL, through fsspec: bounded in time, several at once, every failure one message.

``s3://`` goes through Arrow's own client, which the driver has anyway (s3fs wants other versions of what the frameworks pin);
any other scheme through the package that fsspec names for it. Credentials come from the environment or the client's own
files, as that client documents: a URL holds none.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from synergy.errors import UserError

ANSWER_SECONDS = 30.0
"""A small request that takes longer has failed."""
STALL_SECONDS = 120.0
"""A transfer of which nothing moves for so long has failed."""
LISTING_SECONDS = 600.0
"""So long may it take to list all files below a folder, a thousand a request."""
CONNECT_SECONDS, SILENT_SECONDS, ATTEMPTS = 5.0, 15.0, 2
"""Of one S3 request: until it is connected, without a byte, and how often its client tries. An exit waits for no longer."""
THREADS = 16
"""Transfers at a time."""
PIECE = 8 << 20
"""Bytes of a download at a time, and so THREADS of them in memory. A piece counts as a whole: of larger ones, a slow link might
bring none in STALL_SECONDS."""
TRIES, WAIT_SECONDS = 3, 1.0
"""Of each transfer, and before the second; twice as long before each further one."""
LOCAL = "file://"
"""What the URL of a mounted folder begins with."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
CAUSES = (
    (
        r"quota|no space|(disk|storage).?full|insufficient.?storage",
        "it is full: free some, raise its quota, or set run.store to another",
    ),
    (r"NO_?SUCH_?BUCKET|bucket does not exist", "there is no such bucket: make it, or mend run.store"),
    (
        r"ACCESS_?DENIED|SIGNATURE|INVALID_ACCESS|INVALID_CLIENT|UNRECOGNIZED_CLIENT|forbidden|unauthor|credential|permission",
        "it refuses these credentials: export those of a user who may list, read, write and delete there "
        "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
    ),
    (
        r"NETWORK_CONNECTION|connect|resolve|timed? ?out|no answer|unreachable",
        "it does not answer: check the network, and the endpoint (S3: AWS_ENDPOINT_URL)",
    ),
)
"""Words of a client's error -> what to do. The first that fits; the clients have no errors in common."""
LASTING = 3
"""The first so many of them do not pass by themselves."""

T = TypeVar("T")
Tick = Callable[[int, int], None]
"""Called every half second or so with the bytes that are done, and all; what it raises stops the transfer."""


class Unavailable(UserError):
    """The store can't be used now; lasting: and trying again won't help."""

    lasting = False


class _Stopped(Exception):
    """Another transfer has failed, or the user has interrupted."""


@dataclass(frozen=True)
class Remote:
    """A folder behind a URL. fs: fsspec's file system; root: the folder's path there."""

    url: str
    fs: Any
    root: str

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def call(self, what: str, work: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T:
        """A small request. Raises Unavailable, also when there is no answer in time; FileNotFoundError stays what it is."""
        found: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

        def run() -> None:
            try:
                found.put((work(), None))
            except BaseException as error:
                found.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        try:
            value, error = found.get(timeout=seconds)
        except queue.Empty:
            raise self.failed(what, TimeoutError(f"no answer within {seconds:.0f} s")) from None
        if isinstance(error, FileNotFoundError):
            raise error
        if error is not None:
            raise self.failed(what, error) from error
        return value  # type: ignore[return-value]

    def failed(self, what: str, error: BaseException) -> Unavailable:
        """The one message for what a client raised."""
        if isinstance(error, Unavailable):
            return error
        text = " ".join(str(error).split()) or type(error).__name__
        hits = [n for n, (words, _) in enumerate(CAUSES) if re.search(words, text, re.IGNORECASE)]
        advice = CAUSES[hits[0]][1] if hits else "see what its client says"
        if self.url.startswith(LOCAL) and isinstance(error, PermissionError):
            advice = "this user may not work in that folder: let them list, read and write there, or set run.store to another"
        made = Unavailable(f"run.store={self.url}: {what} failed: {advice}. Its client says: {text[:400]}")
        made.lasting = bool(hits) and hits[0] < LASTING
        return made

    def names(self, path: str) -> list[str]:
        """Last names of the entries of a folder; none where there is no such folder."""

        def work() -> list[str]:
            self.fs.invalidate_cache()
            return [str(name).rstrip("/").rpartition("/")[2] for name in self.fs.ls(self.at(path), detail=False)]

        try:
            return sorted(self.call(f"listing {path}", work))
        except FileNotFoundError:
            return []

    def read(self, path: str) -> bytes:
        """A small file. Raises FileNotFoundError."""
        return bytes(self.call(f"reading {path}", lambda: self.fs.cat_file(self.at(path))))

    def write(self, path: str, data: bytes) -> None:
        """A small file, there as a whole or not at all where the store is an object store."""

        def work() -> None:
            with suppress(NotImplementedError):
                self.fs.makedirs(self.at(path).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.at(path), data)

        try:
            self.call(f"writing {path}", work)
        except FileNotFoundError as error:
            raise self.failed(f"writing {path}", error) from error

    def remove(self, path: str) -> None:
        """A file; nothing if it is not there."""
        with suppress(FileNotFoundError):
            self.call(f"deleting {path}", lambda: self.fs.rm_file(self.at(path)))

    def upload(self, files: Sequence[tuple[Path, str]], tick: Tick) -> None:
        """Local files to paths in the store. Raises Unavailable or OSError."""
        from fsspec.callbacks import Callback

        def send(file: Path, path: str) -> Callable[[Callable[[int], None]], None]:
            def work(moved: Callable[[int], None]) -> None:
                class Moved(Callback):
                    def relative_update(self, inc: int = 1) -> None:
                        moved(inc)

                self.fs.put_file(str(file), self.at(path), callback=Moved())

            return work

        total = sum(file.stat().st_size for file, _ in files)
        self._each("uploading", [(path, send(file, path)) for file, path in files], total, tick)

    def download(self, files: Sequence[tuple[str, Path, int]], tick: Tick) -> None:
        """(path in the store, local file, size): pieces of all of them, several at a time. One that is
        short or not there leaves zeros: whoever compares the sums tells of it. Raises Unavailable or OSError."""

        def fetch(path: str, file: Path, begin: int, end: int) -> Callable[[Callable[[int], None]], None]:
            def work(moved: Callable[[int], None]) -> None:
                try:
                    data = self.fs.cat_file(self.at(path), start=begin, end=end)
                except FileNotFoundError:
                    return
                with file.open("r+b") as stream:
                    stream.seek(begin)
                    stream.write(data)
                moved(len(data))

            return work

        jobs = []
        for path, file, size in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                stream.truncate(size)
            jobs += [(path, fetch(path, file, at, min(at + PIECE, size))) for at in range(0, size, PIECE)]
        self._each("downloading", jobs, sum(size for _, _, size in files), tick)

    def _each(
        self, what: str, jobs: Sequence[tuple[str, Callable[[Callable[[int], None]], None]]], total: int, tick: Tick
    ) -> None:
        """All jobs, THREADS at a time, in threads that no exit waits for long for."""
        todo: queue.SimpleQueue[tuple[str, Callable[[Callable[[int], None]], None]]] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        state = _State()
        threads = [
            threading.Thread(target=self._work, args=(what, todo, state), daemon=True)
            for _ in range(min(THREADS, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive() and state.error is None:
                    thread.join(0.5)
                    tick(min(state.done, total), total)
                    if time.monotonic() - state.moved > STALL_SECONDS:
                        raise self.failed(what, TimeoutError(f"no answer: nothing moved for {STALL_SECONDS:.0f} s"))
        finally:
            state.stop.set()
            for thread in threads:
                thread.join(1.0)
        if state.error is not None:
            raise state.error

    def _work(self, what: str, todo: queue.SimpleQueue[Any], state: _State) -> None:
        with suppress(queue.Empty, _Stopped):
            while True:
                path, job = todo.get_nowait()
                for number in range(TRIES):
                    counted = _Counted(state)
                    try:
                        job(counted)
                        break
                    except _Stopped:
                        raise
                    except Exception as error:  # clients raise what they like
                        known = self.failed(f"{what} {path}", error)
                        if known.lasting or isinstance(error, FileNotFoundError) or number == TRIES - 1:
                            state.fail(known)
                            return
                        counted.undo()
                        if state.stop.wait(WAIT_SECONDS * 2**number):
                            return


class _State:
    """Of transfers that run side by side. done: bytes; moved: when the last of them did; error: the first one's."""

    def __init__(self) -> None:
        self.done, self.moved, self.stop = 0, time.monotonic(), threading.Event()
        self.error: BaseException | None = None
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """Raises _Stopped when there is no use in going on."""
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self.done += count
            self.moved = time.monotonic()

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.error = self.error or error
        self.stop.set()


class _Counted:
    """Counts the bytes of one try of one transfer."""

    def __init__(self, state: _State) -> None:
        self.state, self.done = state, 0

    def __call__(self, count: int) -> None:
        self.done += count
        self.state.add(count)

    def undo(self) -> None:
        self.state.add(-self.done)


def connect(url: str) -> Remote:
    """The store at a URL, without asking it anything. Raises UserError for a URL that is none, or whose package is missing."""
    scheme, _, rest = url.partition("://")
    if not re.fullmatch(r"[a-z][\w+.-]*", scheme) or not rest.strip("/") or "?" in url or "#" in url:
        raise UserError(
            f"run.store={url} is no plain URL: s3://BUCKET/PREFIX, file:///SHARED/FOLDER, or another scheme of fsspec's; "
            "settings and keys of its client come from the environment"
        )
    if url.startswith(LOCAL) and not rest.startswith("/"):
        raise UserError(f"run.store={url} has no absolute path: write file:///SHARED/FOLDER, with three slashes")
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    there = _connected(url.rstrip("/"), environment)
    if url.startswith(LOCAL):
        try:
            there.call("opening it", lambda: os.scandir(there.root).close())
        except FileNotFoundError as error:
            raise Unavailable(
                f"run.store={url}: there is no folder {there.root}: mount what it lies on, or make it"
            ) from error
    return there


@lru_cache(maxsize=8)
def _connected(url: str, environment: tuple[tuple[str, str], ...]) -> Remote:
    try:
        if url.startswith("s3://"):
            return Remote(url, _s3(dict(environment)), url.removeprefix("s3://"))
        import fsspec

        fs, root = fsspec.core.url_to_fs(url, **({"auto_mkdir": True} if url.startswith(LOCAL) else {}))
    except ImportError as error:
        raise UserError(f"run.store={url}: {error}; install it in the environment that runs synergy") from error
    except Exception as error:  # clients raise what they like
        raise Remote(url, None, "").failed("opening it", error) from error
    return Remote(url, fs, str(root).rstrip("/"))


def _s3(environment: dict[str, str]) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs as arrow

    class S3(ArrowFSWrapper):  # type: ignore[misc]
        """What fsspec's wrapper lacks: ranges, folders that are not there, all files in few requests, and objects that need no
        folder."""

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
            with self.fs.open_input_file(path) as stream:
                size, begin = stream.size(), start or 0
                count = (size if end is None else min(end, size)) - begin
                data: bytes = stream.read_at(count, begin) if count > 0 else b""
                return data

        def ls(self, path: str, detail: bool = False, **more: Any) -> list[Any]:
            found = self.fs.get_file_info(arrow.FileSelector(path, allow_not_found=True))
            return [self._make_entry(info) if detail else info.path for info in found]

        def find(self, path: str, **more: Any) -> dict[str, Any]:  # not folder by folder
            found = self.fs.get_file_info(arrow.FileSelector(path, allow_not_found=True, recursive=True))
            return {info.path: self._make_entry(info) for info in found if info.type == arrow.FileType.File}

        def rm_file(self, path: str) -> None:
            try:
                self.fs.delete_file(path)
            except OSError:  # Arrow then makes a marker of the folder, which not every server takes
                if self.fs.get_file_info(path).type != arrow.FileType.NotFound:
                    raise

        def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

        mkdirs = makedirs

    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), None)
    scheme, _, host = endpoint.partition("://") if endpoint else ("https", "", None)
    options = {"endpoint_override": host.rstrip("/"), "scheme": scheme} if host else {}
    s3 = arrow.S3FileSystem(
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        retry_strategy=arrow.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        background_writes=False,  # else the whole file goes to memory, and counts as moved before any of it is sent
        allow_delayed_open=True,  # a small file is one request, and is there as a whole or not at all
        **options,
    )
    return S3(s3, skip_instance_cache=True)


def walk(remote: Remote, path: str) -> dict[str, tuple[int, float]]:
    """File below a folder of the store (path below the store) -> its bytes, and when it was written (Unix time; now, if its
    client does not say)."""

    def work() -> dict[str, Any]:
        remote.fs.invalidate_cache()
        found: dict[str, Any] = remote.fs.find(remote.at(path), detail=True)
        return found

    root = remote.root.strip("/") + "/"
    found = remote.call(f"listing {path}", work, LISTING_SECONDS)
    return {name.lstrip("/").removeprefix(root): (int(info["size"]), _when(info)) for name, info in found.items()}


def _when(info: Mapping[str, Any]) -> float:
    told = next(
        (info[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if name in info), None
    )
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, (int, float)) else time.time()

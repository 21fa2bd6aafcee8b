"""Import the big libraries once, fork them many times: a stand-in for `python` that starts in milliseconds.

A verl job on one machine is about nine processes that each import torch, transformers, vLLM and verl: some 10 s of CPU
and half a gigabyte each, which is most of what a small job costs. `start` forks a server off the process that has
imported them, and writes a small executable, to be named where a Python executable may be named (Ray's
runtime_env.py_executable, multiprocessing.set_executable). Run as `python script ...`, `-c code ...` or `-m module
...`, it asks the server for a fork, passes on arguments, environment, folder and open files, and lives as long as the
fork does. When the server is gone it becomes the real python. Linux only.

The forks see the modules as imported in the server's environment variables: start it with those that matter on import.
Only OMP_NUM_THREADS is set anew, for torch. In a fork sys.executable is the stand-in, so that what it starts is warm too.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import json
import multiprocessing
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_PREFIX = "synergy-fork-"
_PR_SET_PDEATHSIG = 1
_NOT_INITIALIZED = 3  # cuda.h: CUDA_ERROR_NOT_INITIALIZED
_REQUEST_SECONDS = 5.0  # a client that takes longer to say what it wants becomes the real python


def inside() -> bool:
    """Whether this process is a fork of such a server."""
    return Path(sys.executable).parent.name.startswith(_PREFIX)


def _die_with_parent(expected: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        os._exit(1)


def _threads() -> int:
    """Of this process, beside the main one, but for one that NVIDIA's libraries leave waiting for events where vLLM looks which
    GPUs there are: forks without it use the GPU as ever (seen on H200, driver 580)."""
    names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    return sum(not name.startswith("cuda") for name in names) - 1


def _cuda_started() -> bool:
    """Whether this process has initialised CUDA's driver, which does not survive a fork."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != _NOT_INITIALIZED)


def sweep() -> None:
    """Remove the folders of servers whose process was killed: nobody listens there any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if folder.stat().st_uid == os.getuid() and time.time() - folder.stat().st_mtime > 60:
                try:
                    probe.connect(str(folder / "socket"))
                except ConnectionRefusedError:
                    shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path | None = None) -> Path:
    """Fork the server off this process, which must have only one thread; the path of the stand-in for python.

    folder: an empty one for the stand-in and its socket, with a short path; by default a temporary one. The server ends with
    this process, and every fork ends with the server. Raises RuntimeError if there are more threads, CUDA was started, or the
    socket can't be made.
    """
    if threads := _threads():
        raise RuntimeError(f"cannot fork safely: a library started {threads} threads while it was imported")
    if _cuda_started():
        raise RuntimeError("cannot fork safely: a library started CUDA while it was imported")
    if folder is None:
        sweep()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # for this user only; short, as a socket's path must be
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    python, address = folder / "python", folder / "socket"
    client = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_client.py")), sys.executable, str(address)]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
    python.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    aside = folder / "opening"
    try:
        listener.bind(str(aside))
    except OSError as error:
        raise RuntimeError(f"no socket can be had at {aside} ({error}): set TMPDIR to a short path") from error
    aside.chmod(0o600)
    listener.listen(64)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else every fork would tell it again
    multiprocessing.set_executable(str(python))
    me = os.getpid()
    if os.fork() == 0:
        _die_with_parent(me)
        atexit.unregister(shutil.rmtree)
        sys.executable = str(python)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the forks decide for themselves
        gc.collect()
        gc.freeze()  # keeps the memory of what is imported shared
        try:
            _become(*_serve(listener))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    listener.close()
    aside.rename(address)  # whoever sees the socket finds somebody there
    return python


@dataclass(frozen=True)
class _Fork:
    client: socket.socket  # stays open while the process lives; its other end closing means "kill it"
    pid: int
    pidfd: int  # readable when the process has ended


def _serve(listener: socket.socket) -> tuple[list[int], dict[str, Any]]:
    """Answer requests for ever; returns in the forks only: what to become, as open files and the request."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    forks: dict[int, _Fork] = {}  # by both file descriptors
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                made = _fork(listener, forks)
                if isinstance(made, tuple):
                    return made
                if made is not None:
                    for key in (made.client.fileno(), made.pidfd):
                        forks[key] = made
                        poll.register(key, select.POLLIN)
            elif (fork := forks[descriptor]).pidfd == descriptor:
                ended = os.waitid(os.P_PID, fork.pid, os.WEXITED | os.WNOWAIT)
                if ended is not None and ended.si_code != os.CLD_EXITED:
                    _kill(fork.pid)  # its group: as long as it is not waited for, the number is its own
                _, status = os.waitpid(fork.pid, 0)
                _tell(fork.client, os.waitstatus_to_exitcode(status))
                for key in {fork.client.fileno(), fork.pidfd} & set(forks):
                    del forks[key]
                    with contextlib.suppress(KeyError):
                        poll.unregister(key)
                fork.client.close()
                os.close(fork.pidfd)
                break  # a descriptor of this round may have been closed just now
            else:
                _kill(fork.pid)  # its client was killed
                poll.unregister(descriptor)


def _fork(listener: socket.socket, forks: dict[int, _Fork]) -> _Fork | tuple[list[int], dict[str, Any]] | None:
    """For one request: the fork, or in the fork what to become. None where it can't be had: its client then becomes the real
    python, and whatever is short (processes, memory, descriptors) costs nobody else."""
    server, files, pid, done = os.getpid(), list[int](), 0, False
    try:
        client, _address = listener.accept()
    except OSError:
        time.sleep(0.1)  # the request stays, and would be seen again at once
        return None
    try:
        request = _receive(client, files)
        if request is None:
            return None
        if (pid := os.fork()) == 0:
            _die_with_parent(server)
            for inherited in {listener.fileno(), client.fileno(), *forks}:
                os.close(inherited)
            return files, request
        made = _Fork(client, pid, os.pidfd_open(pid))
        _tell(client, pid)
        done = True
        return made
    except OSError:
        if os.getpid() != server:
            os._exit(1)
        if pid:
            _kill(pid)
            os.waitpid(pid, 0)
        return None
    finally:
        if os.getpid() == server:
            for passed in files:
                os.close(passed)
            if not done:
                client.close()


def _kill(pid: int) -> None:
    """A fork, and the processes that it has forked in its turn: they have the server's environment, and so no stage's mark."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.sendall(b"%d\n" % number)


def _receive(client: socket.socket, files: list[int]) -> dict[str, Any] | None:
    """One request: its length in 8 bytes, the open files (added to ``files``), then JSON. None when the client broke off, or
    takes too long: others wait."""
    end = time.monotonic() + _REQUEST_SECONDS
    try:
        client.settimeout(_REQUEST_SECONDS)
        head, passed, _, _ = socket.recv_fds(client, 8, 253)
        files += passed
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            client.settimeout(max(0.001, end - time.monotonic()))
            part = client.recv(1 << 16)
            if not part:
                return None
            data += part
        client.settimeout(None)
        request: dict[str, Any] = json.loads(data)
        return request if len(files) == len(request["files"]) else None  # the rest found no room here
    except (OSError, ValueError):
        return None


def _become(files: list[int], request: dict[str, Any]) -> NoReturn:
    """Turn this fork into the process asked for: its files, folder, environment and program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)  # a group of its own: Ray kills that of a worker that has ended, which must not be the server's
    spare = max([*files, *request["files"], 2]) + 1
    parked = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, spare) for file in files]
    for target, file in zip(request["files"], parked, strict=True):
        os.dup2(file, target)
        os.close(file)
    for file in set(files) - set(request["files"]):
        os.close(file)
    for file in {0, 1, 2} - set(request["files"]):  # closed there, and the server's here
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), file)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 0
    try:
        _run(request["arguments"])
    except SystemExit as end:
        code = end.code % 256 if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    _finish(code)


def _run(arguments: list[str]) -> None:
    import runpy

    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # else all forks would draw the same numbers
    if (torch := sys.modules.get("torch")) and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        torch.set_num_threads(int(threads))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    what, rest = arguments[0], arguments[1:]
    if what == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        import types

        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))  # noqa: S102 - what `python -c` does
    elif what == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *rest]
        sys.path[0] = str(Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


def _finish(code: int) -> NoReturn:
    """End as the interpreter does: join threads, run atexit, flush. code: exit status, or the signal to die of, negative."""
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)

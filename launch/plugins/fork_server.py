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
_SPARE = 500  # file descriptors are parked from here on while they are put in place


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
    this process, and every fork ends with the server. Raises RuntimeError if there are more threads, or CUDA was started.
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
    listener.bind(str(aside))
    aside.chmod(0o600)
    listener.listen(64)
    multiprocessing.set_executable(str(python))
    me = os.getpid()
    if os.fork() == 0:
        _die_with_parent(me)
        atexit.unregister(shutil.rmtree)
        sys.executable = str(python)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the forks decide for themselves
        gc.collect()
        gc.freeze()  # keeps the memory of what is imported shared
        _become(*_serve(listener))
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
                client, _address = listener.accept()
                received = _receive(client)
                if received is None:
                    client.close()
                    continue
                server = os.getpid()
                if (pid := os.fork()) == 0:
                    _die_with_parent(server)
                    for inherited in {listener.fileno(), client.fileno(), *forks}:
                        os.close(inherited)
                    return received
                for passed in received[0]:
                    os.close(passed)
                fork = _Fork(client, pid, os.pidfd_open(pid))
                for key in (client.fileno(), fork.pidfd):
                    forks[key] = fork
                    poll.register(key, select.POLLIN)
                _tell(client, pid)
            elif (fork := forks[descriptor]).pidfd == descriptor:
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
                os.kill(fork.pid, signal.SIGKILL)  # its client was killed
                poll.unregister(descriptor)


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.sendall(b"%d\n" % number)


def _receive(client: socket.socket) -> tuple[list[int], dict[str, Any]] | None:
    """One request: its length in 8 bytes, the open files, then JSON; None when the client broke off."""
    try:
        client.settimeout(10)
        head, files, _, _ = socket.recv_fds(client, 8, 253)
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            part = client.recv(1 << 16)
            if not part:
                return None
            data += part
        client.settimeout(None)
        return list(files), json.loads(data)
    except (OSError, ValueError):
        return None


def _become(files: list[int], request: dict[str, Any]) -> NoReturn:
    """Turn this fork into the process asked for: its files, folder, environment and program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)  # a group of its own: Ray kills that of a worker that has ended, which must not be the server's
    parked = [os.dup2(file, _SPARE + index, inheritable=False) for index, file in enumerate(files)]
    for target, file in zip(request["files"], parked, strict=True):
        os.dup2(file, target)
        os.close(file)
    for file in set(files) - set(request["files"]):
        os.close(file)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 0
    try:
        _run(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
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
    """End as the interpreter does: join threads, run atexit, flush."""
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)

"""Import the big libraries once, fork them many times: a stand-in for `python` whose processes start within milliseconds.

A verl job on one machine is about nine processes that each import torch, transformers, vLLM and verl: some 10 s of CPU
and half a gigabyte each, which is most of what a small job costs. `start` forks a server off the process that has
imported them, and writes a small executable, to be named where a Python executable may be named (Ray's
runtime_env.py_executable, multiprocessing.set_executable). Run as `python script ...`, `-c code ...` or `-m module ...`, it
asks the server for a fork, passes on arguments, environment, folder and open files, and lives as long as the fork does.
When the server is gone it becomes the real python. Linux only.

The forks see the modules as imported in the server's environment variables: start it with those that matter on import.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import select
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_SPARE = 500  # file descriptors are parked from here on while they are put in place


def _die_with_parent(expected: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected:
        os._exit(1)


def start(folder: Path | None = None, after_fork: Callable[[], None] = lambda: None) -> Path:
    """Fork the server off this process, which must have only one thread; the path of the stand-in for python.

    `after_fork` runs in each fork once its environment is in place, for libraries that read theirs on import. The server
    ends with this process, and with it every fork. Raises RuntimeError when there are several threads.
    """
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"cannot fork safely: a library started {threads - 1} threads while it was imported")
    folder = Path(tempfile.mkdtemp(prefix="synergy-fork-", dir=folder))
    python = folder / "python"
    client = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_client.py"))])
    python.write_text(f'#!/bin/sh\nexec {client} {shlex.quote(sys.executable)} {shlex.quote(str(folder / "s"))} "$@"\n')
    python.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "s"))
    listener.listen(64)
    multiprocessing.set_executable(str(python))
    gc.collect()
    gc.freeze()  # keeps the pages of what is imported shared
    me = os.getpid()
    if os.fork() == 0:
        _die_with_parent(me)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for descriptor, request in _serve(listener):
            _become(descriptor, request, after_fork)
        os._exit(0)
    listener.close()
    return python


def _serve(listener: socket.socket) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Answer requests for ever. Yields (in the forks only) what to become."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    clients: dict[
        int, tuple[socket.socket, int, int]
    ] = {}  # by descriptor of socket and of process: socket, pidfd, pid
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                client, _address = listener.accept()
                received = _receive(client)
                if received is None:
                    client.close()
                    continue
                if (pid := os.fork()) == 0:
                    listener.close()
                    for other, process, _pid in clients.values():
                        other.close()
                        if process >= 0:
                            os.set_inheritable(process, False)
                    client.close()
                    yield received
                    os._exit(0)
                for passed in received[0]:
                    os.close(passed)
                process = os.pidfd_open(pid)
                clients[client.fileno()] = clients[process] = (client, process, pid)
                poll.register(client, select.POLLIN | select.POLLHUP)
                poll.register(process, select.POLLIN)
                client.sendall(b"%d\n" % pid)
                continue
            client, process, pid = clients[descriptor]
            if descriptor == client.fileno():  # the client was killed: so is its process
                os.kill(pid, signal.SIGKILL)
                poll.unregister(client)
                continue
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(OSError):
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            for key in (client.fileno(), process):
                clients.pop(key, None)
                with contextlib.suppress(KeyError):
                    poll.unregister(key)
            client.close()
            os.close(process)


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


def _become(files: list[int], request: dict[str, Any], after_fork: Callable[[], None]) -> NoReturn:
    """Turn this fork into the process asked for: its files, folder, environment and program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
        after_fork()
        _run(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the top of a process
        sys.excepthook(*sys.exc_info())
        code = 1
    _finish(code)


def _run(arguments: list[str]) -> None:
    import runpy

    import numpy as np

    np.random.seed()  # noqa: NPY002 - else all forks would draw the same numbers
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
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
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)

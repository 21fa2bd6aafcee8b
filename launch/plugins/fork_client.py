"""The stand-in for python of `fork_server`: fork_client.py PYTHON SOCKET ARGUMENTS... (see there).

Kept to a few fast imports; whatever is unusual is left to the real python.
"""

import contextlib
import json
import os
import signal
import socket
import sys

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(python: str, address: str, arguments: list[str]) -> int:
    """Ask for a fork that runs `arguments`; its exit status once it has ended."""
    plain = list(arguments)
    while plain and plain[0] in ("-u", "-B"):
        plain.pop(0)
    files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    files = [file for file in files if os.path.exists(f"/proc/self/fd/{file}") and os.get_inheritable(file)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # held until it is known whom to pass them on to
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not plain or (plain[0].startswith("-") and plain[0] not in ("-c", "-m")):
            raise OSError
        server.connect(address)
        umask = os.umask(0)
        os.umask(umask)
        request = {
            "arguments": plain,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "umask": umask,
            "files": files,
        }
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(8, "big")], files)
        server.sendall(data)
        lines = server.makefile("rb")
        pid = int(lines.readline())
    except (OSError, ValueError):
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execv(python, [python, *arguments])
    for file in files:
        if file > 2:
            os.close(file)  # so that the other end of a pipe sees the fork close it

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in _PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:  # as of a command under nohup
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = lines.readline()
    if not status:
        return 1  # the server is gone, and every fork with it
    code = int(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

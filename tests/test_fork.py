"""The fork server behaves as the python it stands in for, and nothing outlives the process that started it."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "launch" / "plugins"
PARENT = """
import sys; sys.path.insert(0, {plugins!r})
import decimal, fork_server
print(fork_server.start(), flush=True)
sys.stdin.read()
"""
CODE = "import sys; print('decimal' in sys.modules)"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    code = PARENT.format(plugins=str(PLUGINS))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def python(parent: subprocess.Popen[str]) -> str:
    assert parent.stdout is not None
    return parent.stdout.readline().strip()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def soon(condition: object, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_runs_code_scripts_and_modules_as_python_does(python: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys, neighbour; m = sys.modules\n"
        "print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ['X'], 'decimal' in m, sys.stdin.read()]))\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    (tmp_path / "neighbour.py").write_text("")
    expected = {"cwd": tmp_path, "env": {**os.environ, "X": "é"}, "input": "in", "capture_output": True, "text": True}
    for first in ([str(script)], ["-m", "script"], ["-u", str(script)]):
        done = subprocess.run([python, *first, "3"], **expected)  # type: ignore[call-overload]
        assert done.returncode == 3, done.stderr
        name, argv, folder, variable, preloaded, stdin = json.loads(done.stdout)
        assert (name, argv[1:], folder, variable, stdin) == ("__main__", ["3"], str(tmp_path), "é", "in")
        assert preloaded is True  # imported by the server, not by the script
    done = subprocess.run(
        [python, "-c", "import sys; sys.exit('no: ' + sys.argv[1])", "a b"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "no: a b\n")
    assert subprocess.run([python, "-c", "import sys; sys.exit(-1)"]).returncode == 255
    done = subprocess.run([python, "-c", "1/0"], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert subprocess.run([python, "--version"], capture_output=True, text=True).stdout.startswith("Python 3")


def test_passes_on_open_files_and_signals(python: str) -> None:
    read, write = os.pipe()
    subprocess.run([python, "-c", f"import os; os.write({write}, b'hello')"], pass_fds=[write], check=True)
    os.close(write)
    assert os.read(read, 10) == b"hello"
    assert os.read(read, 10) == b""
    os.close(read)
    code = "import signal, os, time; signal.signal(15, lambda *_: os._exit(7)); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    process.terminate()
    assert process.wait(10) == 7
    process = subprocess.Popen([python, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert process.wait(10) == -signal.SIGKILL


def test_a_signal_before_the_fork_s_pid_is_known_reaches_the_fork(tmp_path: Path) -> None:
    code = "import signal, os, time; signal.signal(15, lambda *_: os._exit(7)); print(1, flush=True); time.sleep(60)"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        client = subprocess.Popen(
            [sys.executable, "-I", "-S", PLUGINS / "fork_client.py", sys.executable, tmp_path / "socket", "-c", code]
        )
        connection, _ = server.accept()
        with connection, subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as fork:
            connection.recv(8)
            assert fork.stdout is not None and fork.stdout.readline() == b"1\n"
            client.terminate()  # the fork runs, and its client does not know it yet
            connection.sendall(b"%d\n" % fork.pid)
            assert fork.wait(10) == 7
            connection.sendall(b"7\n")
            assert client.wait(10) == 7


def test_a_fork_s_process_group_can_be_killed_alone(python: str) -> None:
    code = "import os, time; print(os.getpgid(0), flush=True); time.sleep(60)"
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    os.killpg(int(process.stdout.readline()), signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert subprocess.run([python, "-c", CODE], capture_output=True, text=True).stdout.split()[-1] == "True", (
        "still warm"
    )


def test_multiprocessing_spawns_through_it(python: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        textwrap.dedent(f"""
            import multiprocessing, sys
            def double(number):
                return 2 * number, "decimal" in sys.modules
            if __name__ == "__main__":
                multiprocessing.set_executable({python!r})
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.map(double, [1, 2, 3]))
        """)
    )
    done = subprocess.run([sys.executable, "work.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[(2, True), (4, True), (6, True)]\n", done.stderr


def test_a_fork_dies_with_its_client_and_with_the_parent(python: str, parent: subprocess.Popen[str]) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    clients = [subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = [int(client.stdout.readline()) for client in clients if client.stdout]
    clients[0].kill()
    assert soon(lambda: not alive(pids[0])) and alive(pids[1]) and alive(pids[2])
    parent.kill()
    parent.wait()
    assert soon(lambda: not any(map(alive, pids)))
    assert [client.wait(10) for client in clients] == [-signal.SIGKILL, 1, 1]
    # without a server it is the real python
    assert subprocess.run([python, "-c", "print(2)"], capture_output=True, text=True).stdout == "2\n"


def test_leaves_no_folder_and_refuses_threads(parent: subprocess.Popen[str], python: str) -> None:
    parent.communicate("", timeout=60)
    assert parent.returncode == 0 and not Path(python).parent.exists()
    code = f"""
import sys; sys.path.insert(0, {str(PLUGINS)!r})
import threading, time, fork_server
threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
fork_server.start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "started 1 threads" in done.stderr


def test_only_this_user_reaches_it(python: str) -> None:
    folder = Path(python).parent
    assert soon(lambda: (folder / "socket").exists())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "socket").stat().st_mode & 0o777 == 0o600


def test_a_fork_that_is_killed_takes_its_own_forks_along(python: str) -> None:
    code = "import os, time; print(os.fork() or os.getpid(), flush=True); time.sleep(60)"
    for end in (signal.SIGTERM, signal.SIGKILL):  # passed on; and seen by the server, since the client is gone
        process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(end)
        assert process.wait(10) == -end and soon(lambda child=child: not alive(child))  # type: ignore[misc]


def test_a_request_that_breaks_off_costs_nobody_else(python: str) -> None:
    running = subprocess.Popen([python, "-c", "import time; time.sleep(60)"])
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(Path(python).with_name("socket")))
        socket.send_fds(client, [(1000).to_bytes(8, "big")], [write])
        client.sendall(b"{")
    os.close(write)
    assert os.read(read, 1) == b"", "the server keeps no file of it open"
    os.close(read)
    assert subprocess.run([python, "-c", CODE], capture_output=True, text=True).stdout == "True\n", "still warm"
    assert running.poll() is None
    running.kill()
    running.wait()


def test_a_server_that_can_not_fork_leaves_it_to_the_real_python(python: str, parent: subprocess.Popen[str]) -> None:
    (server,) = (child.pid for child in psutil.Process(parent.pid).children())
    running = subprocess.Popen(
        [python, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert running.stdout is not None and running.stdout.readline()
    limits = resource.prlimit(server, resource.RLIMIT_NOFILE)
    open_files = max(int(name) for name in os.listdir(f"/proc/{server}/fd"))
    resource.prlimit(server, resource.RLIMIT_NOFILE, (open_files + 1, limits[1]))
    assert subprocess.run([python, "-c", CODE], capture_output=True, text=True, timeout=60).stdout == "False\n"
    resource.prlimit(server, resource.RLIMIT_NOFILE, limits)
    assert subprocess.run([python, "-c", CODE], capture_output=True, text=True).stdout == "True\n"
    assert running.poll() is None
    running.kill()
    running.wait()


def test_an_interrupt_ends_a_fork_as_it_ends_python(python: str) -> None:
    code = "import time; print(1, flush=True); time.sleep(60)"
    for program in (sys.executable, python):
        process = subprocess.Popen([program, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1] and process.returncode == -signal.SIGINT

"""Computer algebra (math-verify) in children that can be killed, for use from any thread, coroutine or Ray worker.

math-verify's own time limit is a signal: it works in a main thread only, cannot interrupt one long C call and limits no
memory. Here the child has hard limits on memory and CPU time, and the parent kills and replaces one that does not
answer.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

SECONDS = 3.0  # for one comparison
START_SECONDS = 60.0  # for a child to import its libraries on a busy machine
CHILDREN = 2  # at once; further callers wait

_CHILD = Path(__file__).with_name("checker_child.py")


class _Child:
    """One child process, answering one question at a time by lines of JSON."""

    def __init__(self) -> None:
        # No inherited PYTHONPATH, so that the child sees only what its interpreter has installed.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )
        if self._line(START_SECONDS) is None:
            self.kill()
            raise OSError("the answer checker's child did not start; is math-verify installed?")

    def _line(self, seconds: float) -> str | None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return (self.process.stdout.readline().decode() or None) if ready else None

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """The child's verdict, None when it gave none in time; then it is to be killed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            return None
        return None if line is None else line.strip() == "true"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class CheckerPool:
    """At most `children` child processes, started when first needed."""

    def __init__(self, children: int = CHILDREN, seconds: float = SECONDS) -> None:
        self.seconds, self.replaced = seconds, 0
        self._places = threading.BoundedSemaphore(children)
        self._idle: list[_Child] = []

    def verify(self, gold: str, answer: str) -> bool | None:
        """Whether the expression `answer` equals `gold`; None if it took too much time or memory or no child starts."""
        with self._places:
            try:
                child = self._idle.pop() if self._idle else _Child()
            except OSError:
                return None
            verdict = child.ask(gold, answer, self.seconds)
            if verdict is None:
                child.kill()
                self.replaced += 1
            else:
                self._idle.append(child)
            return verdict

    def close(self) -> None:
        """Kill the idle children."""
        while self._idle:
            self._idle.pop().kill()

    def forget(self) -> None:
        """After a fork: the children belong to the parent."""
        self.__init__(seconds=self.seconds)  # type: ignore[misc]


_POOL = CheckerPool()
os.register_at_fork(after_in_child=_POOL.forget)
atexit.register(_POOL.close)
verify = _POOL.verify

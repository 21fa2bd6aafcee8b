"""Computer algebra (math-verify) in children that can be killed, for use from any thread, coroutine or Ray worker.

math-verify's own time limit is a signal: it works in a main thread only, cannot interrupt one long C call and limits no
memory. Here a worker has a hard limit on memory, and one that does not answer in time is killed and replaced by its
parent, `checker_child`; should that hang itself, it is killed from here.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 0.8  # CPU time of one question, and of those of one judgement before the last
GRACE = 10.0  # for the child to tell that a worker took too long and was replaced, on a busy machine
START_SECONDS = 60.0  # for a child to import its libraries on a busy machine
CHILDREN = 2  # at once; further callers wait

_CHILD = Path(__file__).with_name("checker_child.py")


class Refused(Exception):
    """No verdict: the comparison takes too much time or memory."""


class Unavailable(Exception):
    """No verdict this time: no child can be started, or two died one after the other. That is the machine's doing, not a
    response's: whoever judges must not take it for a wrong answer."""


class _Child:
    """One child process, answering one question at a time by lines of JSON."""

    def __init__(self) -> None:
        # No inherited PYTHONPATH, so that the child sees only what its interpreter has installed.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(_CHILD)],
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

    def ask(self, request: list[str], seconds: float) -> Any:
        """[CPU seconds, reply]. Raises Refused when the worker was killed, OSError when the child itself is to be."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([seconds, request]).encode() + b"\n")
        self.process.stdin.flush()
        line = self._line(seconds + GRACE)
        if line is None:
            raise OSError("the answer checker's child hangs")
        reply = json.loads(line)
        if reply is None:
            raise Refused("too long or too large")
        return reply

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class CheckerPool:
    """At most `children` child processes, started when first needed."""

    def __init__(self, children: int = CHILDREN) -> None:
        self.replaced, self._children = 0, children
        self._places = threading.BoundedSemaphore(children)
        self._idle: list[_Child] = []

    def ask(self, task: str, *texts: str, seconds: float = SECONDS) -> Any:
        """[CPU seconds, reply of `checker_child.TASKS[task]`]. Raises Refused or Unavailable."""
        with self._places:
            try:
                return self._ask(self._idle.pop() if self._idle else _Child(), [task, *texts], seconds)
            except (OSError, ValueError):  # once more, by a new child: those that wait may all have been killed
                try:
                    return self._ask(_Child(), [task, *texts], seconds)
                except (OSError, ValueError) as error:
                    raise Unavailable(str(error)) from error

    def _ask(self, child: _Child, request: list[str], seconds: float) -> Any:
        """Raises Refused, or OSError or ValueError when the child had to be killed."""
        try:
            reply = child.ask(request, seconds)
        except (OSError, ValueError):
            child.kill()
            self.replaced += 1
            raise
        except Refused:
            self.replaced += 1
            self._idle.append(child)
            raise
        self._idle.append(child)
        return reply

    def close(self) -> None:
        """Kill the idle children; their workers go with them."""
        while self._idle:
            self._idle.pop().kill()

    def forget(self) -> None:
        """After a fork: the children belong to the parent."""
        self.__init__(self._children)  # type: ignore[misc]


_POOL = CheckerPool()
os.register_at_fork(after_in_child=_POOL.forget)
atexit.register(_POOL.close)


def warm() -> None:
    """Start the children now, in the time of one; else the first formula waits a second for its child."""
    threads = [threading.Thread(target=_POOL.ask, args=("value", "1")) for _ in range(CHILDREN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def close() -> None:
    """End the children; the next formula starts new ones."""
    _POOL.close()


@lru_cache(maxsize=8192)
def _asked(task: str, *texts: str) -> tuple[float, Any] | None:
    """(CPU seconds, reply), or None; what was refused once is not tried again. The group of rollouts of one question repeats
    its answers, and many questions share theirs."""
    try:
        seconds, reply = _POOL.ask(task, *texts)
    except Refused:
        return None
    return seconds, reply


class Algebra:
    """Computer algebra for one judgement: once a question took too long, or all together did, every further one is refused.

    A reply from the cache costs what it cost at first, so that a verdict does not depend on what was asked before.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._left = seconds
        self.refused = False

    def ask(self, task: str, *texts: str) -> Any:
        """The reply, or None when it is refused (then `refused` is set). Raises Unavailable."""
        if self.refused or self._left <= 0:
            self.refused = True
            return None
        answer = _asked(task, *texts)
        if answer is None:
            self.refused = True
            return None
        self._left -= answer[0]
        return answer[1]

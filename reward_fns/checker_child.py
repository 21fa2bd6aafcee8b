"""Child process of `checker_pool`, run as a script: one JSON request per line, one JSON reply per line.

The process imports the algebra once and forks a worker, which does the work; a worker that takes too long or too much
memory is killed and forked anew, in milliseconds. Only math-verify's LaTeX grammar reads the answers: its reader of plain
expressions would pass them to Python's eval.
"""

import contextlib
import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

MEMORY = 1 << 30  # bytes of address space beyond what the imports took
DIGITS = 150
PATIENCE = 5
TICKS = os.sysconf("SC_CLK_TCK")
POINTS = ((0.7391, 1.6180), (1.9327, 0.4142), (-0.5772, 2.2360), (2.5029, -1.2020))  # where expressions are compared

# Imports what the first request would, and fills the tables that the LaTeX parser builds as it goes: later parses take a
# third of the time, in every worker that is forked.
WARM_UP = (
    ("x+1", "1+x"), ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"), ("2\\pi r^2", "-3x^{2}+5x-7"), ("x(x-1)(x+2)", "(x+1)^2"),
    ("\\sin x\\cos{2x}", "\\tan^2\\theta"), ("\\log_2 8", "\\ln(x+1)"), ("e^{-2x}", "3\\cdot 10^{5}"),
    ("\\sqrt[3]{x}", "|x-2|"),
    ("\\frac{a+b}{2ab}-(c)", "5\\times 4"), ("\\binom{5}{2}", "4!"), ("2x+3y=7", "y=2x"), ("0.5x", "1.25"), ("a_1+a_2", "x'"),
    ("-\\frac{3}{4}i", "2+3i"), ("\\{1,2\\}", "(1,2]"),
)  # fmt: skip


@lru_cache(maxsize=512)
def parsed(text: str) -> Any:
    """The sympy object that math-verify reads from LaTeX `text`, or None."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units stay: it would take the variables of "2ab" and "m g" for some.
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    found = parse(f"${text}$", [LatexExtractionConfig(normalization_config=normal)], parsing_timeout=None)
    return found or None


def exact(expression: Any) -> Any:
    """With i as the imaginary unit, and decimals as the fractions that they are."""
    import sympy

    units = {name: sympy.I for name in expression.free_symbols if name.name == "i"}
    return expression.xreplace(
        units | {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    )


def difference(one: Any, other: Any) -> bool | None:
    """Whether two expressions in the same variables differ, by value at a few points; None where that can't tell."""
    import sympy

    if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr):
        return None
    one, other = exact(one), exact(other)
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    apart: dict[bool, list[bool]] = {True: [], False: []}  # by whether both values are real
    for point in POINTS if names else POINTS[:1]:
        # Any fixed values do; each variable takes another one.
        at = {name: sympy.Rational(str(round(point[0] + i * point[1], 6))) for i, name in enumerate(names)}
        left, right = (sympy.N(e.subs(at), DIGITS) for e in (one, other))
        if left.is_number and right.is_number and left.is_finite and right.is_finite:
            far = abs(left - right) > (1 + abs(left) + abs(right)) * sympy.Float(10) ** (8 - DIGITS)
            apart[bool(left.is_real and right.is_real)].append(bool(far))
    told = apart[True] or apart[False]  # 2 ln x is ln x^2 where both are real
    return any(told) if told else None


def same(gold: str, answer: str) -> bool:
    """Whether two LaTeX texts mean the same: by values where both are expressions, else by math-verify's own comparison."""
    from math_verify import verify

    wanted, mine = parsed(gold), parsed(answer)
    if wanted is None or mine is None:
        return False
    differ = difference(wanted[0], mine[0])
    if differ is not None:
        return not differ
    return bool(verify(wanted, mine, timeout_seconds=None))


def proportional(gold: str, answer: str) -> bool:
    """Whether two differences "left-(right)" of equations are equal up to a constant factor that is not zero."""
    import sympy

    wanted, mine = parsed(gold), parsed(answer)
    if wanted is None or mine is None or not all(isinstance(e[0], sympy.Expr) for e in (wanted, mine)):
        return False
    if wanted[0].free_symbols != mine[0].free_symbols:
        return False
    ratio = sympy.cancel(sympy.together(exact(mine[0]) / exact(wanted[0])))
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def value(text: str) -> str | None:
    """A real constant as a decimal of 30 digits; None for everything else."""
    import sympy

    found = parsed(text)
    if found is None or not isinstance(found[0], sympy.Expr) or found[0].free_symbols:
        return None
    number = sympy.N(exact(found[0]), 30)
    # What sympy cannot evaluate is real too, and no number: 3.14*Mod(factorial(2**31), 97), say.
    return str(number) if number.is_Number and number.is_real and number.is_finite else None


TASKS: dict[str, Callable[..., Any]] = {"same": same, "proportional": proportional, "value": value}


def work(requests: int, replies: int) -> None:
    """The worker: limited in memory, gone with its parent."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with open(requests, encoding="utf-8") as lines:
        for line in lines:
            task, *texts = json.loads(line)
            try:
                reply = TASKS[task](*texts)
            except Exception:  # whatever sympy raises over hostile input
                reply = None
            os.write(replies, json.dumps(reply).encode() + b"\n")


class Worker:
    """A forked worker and the pipes to it."""

    def __init__(self) -> None:
        out_read, self.requests = os.pipe()
        self.replies, in_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.requests)
            os.close(self.replies)
            with contextlib.suppress(BaseException):
                work(out_read, in_write)
            os._exit(0)
        os.close(out_read)
        os.close(in_write)

    def used(self) -> float:
        """CPU seconds of the worker so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def ask(self, line: str, seconds: float) -> tuple[float, str] | None:
        """(CPU seconds, reply as JSON); None when it took too much CPU time, or the worker died. On a busy machine it may
        take PATIENCE times as long by the clock: what a verdict is must not depend on what else is running."""
        with contextlib.suppress(OSError):
            before, end = self.used(), time.monotonic() + PATIENCE * seconds
            os.write(self.requests, line.encode())
            while time.monotonic() < end and self.used() - before < seconds:
                if select.select([self.replies], [], [], 0.05)[0]:
                    reply = os.read(self.replies, 1 << 16).decode().strip()
                    return (self.used() - before, reply) if reply else None
        return None

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.requests)
        os.close(self.replies)


def main() -> None:
    """Serve until standard input closes."""
    logging.disable(logging.CRITICAL)
    for gold, answer in WARM_UP:
        same(gold, answer)
    worker = Worker()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, request = json.loads(line)
        reply = worker.ask(json.dumps(request) + "\n", seconds)
        if reply is None:
            worker.kill()
            worker = Worker()
        print("null" if reply is None else f"[{reply[0]:.3f}, {reply[1]}]", flush=True)
    worker.kill()


if __name__ == "__main__":
    main()

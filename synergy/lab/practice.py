"""What the base model is taught: short answers, a trace now and then, and sums by themselves.

The base has to know what a pretrained model knows, to read a digit and to add. And it has to reason now and then when
told to, on short questions more than on long ones: then long traces have something to put together, and reinforcement
has something to reward.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from synergy.lab import digits
from synergy.lab.digits import Record

INSTRUCTED = 0.6  # share of the questions that carry the reasoning instruction
REASONED = 0.35  # share of those that are answered by a trace of at most SHORT_TRACE lines
SHORT_TRACE = 3
LONG_REASONED = 0.15  # the same of longer traces


def reading(count: int, seed: int) -> Iterator[tuple[Record, bool, str]]:
    """Numbers to be read, without the instruction."""
    for record in digits.questions("train", count, seed, choice_share=0.0, kinds=("number",)):
        yield record, False, record.short


def questions(count: int, seed: int) -> Iterator[tuple[Record, bool, str]]:
    """(record, whether instructed, response) over training digits."""
    rng = random.Random(f"questions {seed}")
    for record in digits.questions("train", count, seed, choice_share=0.4):
        instructed = rng.random() < INSTRUCTED
        share = REASONED if record.steps <= SHORT_TRACE else LONG_REASONED
        reasoned = instructed and rng.random() < share
        yield record, instructed, record.trace if reasoned else record.short


def drills(count: int, seed: int) -> Iterator[tuple[Record, bool, str]]:
    """Chains of sums, without a picture to read (a blank strip)."""
    rng = random.Random(f"drills {seed}")
    for number in range(count):
        question, response = chain(rng)
        name = f"drill-{seed}-{number:05d}"
        drill = Record(name, question, "", ("images/blank.png",), trace=response, short=response, kind="drill", steps=1)
        yield drill, False, response


def chain(rng: random.Random) -> tuple[str, str]:
    """A start and up to five signed digits; each partial result in turn."""
    start = value = rng.randrange(10) if rng.random() < 0.5 else rng.randrange(-9, 37)
    signs = rng.choice(("+", "+-"))
    terms, lines = [], []
    for _ in range(rng.randint(2, 5)):
        sign, digit = rng.choice(signs), rng.randrange(10)
        result = value + digit if sign == "+" else value - digit
        terms.append(f"{sign}{digit}")
        lines.append(f"{value}{sign}{digit}={result}")
        value = result
    return f"Start with {start}: {' '.join(terms)}", "\n".join(lines)

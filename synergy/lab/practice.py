"""What the base model is taught: short answers, a glance at the digits now and then, and the pieces of arithmetic by themselves.

The base has to know what a pretrained model knows (to read a digit, to add, to find an option) without having seen a long trace;
then long traces have something to put together, and reinforcement has a rewarded form to find.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from synergy.lab.digits import Record, records

INSTRUCTED = 0.6  # share of the questions that carry the reasoning instruction
GLANCE = 0.5  # share of those that are answered after reading the digits within <think>


def glance(record: Record) -> str:
    """The digits within <think>, and the value of the right option if there are options; no partial result."""
    lines = [" ".join(map(str, record.digits))]
    if record.choices:
        lines.append(f"{record.choices[record.answer]} is {record.answer}")
    return "<think>\n" + "\n".join(lines) + "\n</think>\n" + record.short


def questions(count: int, seed: int) -> Iterator[tuple[Record, bool, str]]:
    """(record, whether instructed, response) over training digits."""
    rng = random.Random(f"questions {seed}")
    for record in records("train", count, seed, choice_share=0.4):
        instructed = rng.random() < INSTRUCTED
        yield record, instructed, glance(record) if instructed and rng.random() < GLANCE else record.short


def drills(count: int, seed: int) -> Iterator[tuple[Record, bool, str]]:
    """Chains of sums and look-ups of options, without a picture to read (a blank strip)."""
    rng = random.Random(f"drills {seed}")
    for number in range(count):
        if rng.random() < 0.6:
            question, response, choices = *chain(rng), None
        else:
            question, response, choices = lookup(rng)
        name = f"drill-{seed}-{number:05d}"
        yield Record(name, question, ("images/blank.png",), "", choices, response, response, "drill", 1, (), ()), False, response


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


def lookup(rng: random.Random) -> tuple[str, str, dict[str, str]]:
    """Four options and the letter of each, in another order."""
    ends = rng.sample(range(10), 4)
    values = [str(10 * rng.choice((0, 0, 1, 2, 3, rng.randrange(1000))) + end) for end in ends]
    choices = dict(zip("ABCD", values, strict=True))
    asked = rng.sample("ABCD", 4)
    lines = [f"{choices[letter]} is {letter}" for letter in asked]
    return "Name the options " + " ".join(choices[letter] for letter in asked), "\n".join(lines), choices

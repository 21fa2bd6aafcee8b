"""Ids over all sources: who has one first, and what a row is called that has none, or one that is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synergy.data.examine import Head
from synergy.data.part import Part
from synergy.data.problems import Problem

Named = Mapping[int, Problem]
"""Row of a source, counted from 0 -> what is wrong with its id."""


def over(parts: Sequence[Part], policies: Mapping[str, str]) -> list[Named]:
    """Of each part. An id belongs to the first row with it that its own problems don't keep out."""
    taken: set[str] = set()
    return [_of_part(part, policies, taken) for part in parts]


def _of_part(part: Part, policies: Mapping[str, str], taken: set[str]) -> dict[int, Problem]:
    found = {}
    for number, head in enumerate(part.heads()):
        if head.id is None:
            continue
        problem = _problem(head, part.source.name, taken)
        if problem is not None:
            found[number] = problem
        if all(policies[check] == "repair" and mends for check, mends in head.problems):
            if problem is None:
                taken.add(head.id)
            elif policies["id"] == "repair" and problem.repair is not None:
                taken.add(problem.repair["id"])
    return found


def _problem(head: Head, source: str, taken: set[str]) -> Problem | None:
    if not head.id:
        return Problem("id", "id", "has no id", {"id": _free(head.made, taken)})
    if head.id in taken:
        return Problem("id", "id", f"its id {head.id!r} is used before", {"id": _free(f"{source}:{head.id}", taken)})
    return None


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 2
    while found in taken:
        found, number = f"{name}#{number}", number + 1
    return found

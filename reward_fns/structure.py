r"""Answers of several parts: intervals, sets, tuples, lists, matrices, systems, and inequalities as the intervals they mean.

Read by their brackets and top-level separators only; what stands between them is compared by the caller's `same`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_PARTS = 64  # of a set or list; longer ones are compared as text only

_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_TOKEN = re.compile(r"\\[{}]|\\langle|\\rangle|\\[A-Za-z]+|\\.|.", re.DOTALL)
_NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'?)"
VARIABLE = re.compile(_NAME)
"""A name that an equation or an inequality may be about."""
_CHAIN = re.compile(r"(<=|>=|\\le(?![a-z])|\\ge(?![a-z])|<|>|\\lt(?![a-z])|\\gt(?![a-z]))")
_LESS = {"<": False, "<=": True, "\\le": True, "\\lt": False}  # relation -> whether the end belongs to it
_MORE = {">": False, ">=": True, "\\ge": True, "\\gt": False}
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array|cases)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_MEMBER = re.compile(rf"{_NAME}\s*\\in\s+(.*)", re.DOTALL)
_ASSIGNED = re.compile(rf"({_NAME})\s*=\s*(?!=)(.*)", re.DOTALL)
_PLUS_MINUS = re.compile(r"^(.*?)\\pm\s*(.*)$", re.DOTALL)
_INFINITY = re.compile(r"^\+?\s*\\infty$|^\+?\s*(?:oo|inf|infinity)$")


@dataclass(frozen=True)
class Parts:
    """kind: interval, tuple, set, list, matrix, union or system. brackets: of an interval or tuple, "[)" say.
    items: the parts as text; of a union and a matrix Parts themselves. names: the variable of each item of a system, or that
    of an interval, where it was given."""

    kind: str
    items: tuple["str | Parts", ...]
    brackets: str = ""
    names: tuple[str, ...] = ()


def split(text: str, separators: Sequence[str]) -> list[str]:
    """`text` at its separators (tokens) outside of all brackets; open and closing brackets of any kind match."""
    pieces, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in _OPEN or mark in ("\\{", "\\langle", "\\begin"):
            depth += 1
        elif mark in _CLOSE or mark in ("\\}", "\\rangle", "\\end"):
            depth -= 1
        elif depth == 0 and mark in separators:
            pieces.append(text[start : token.start()].strip())
            start = token.end()
    pieces.append(text[start:].strip())
    return pieces


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) when one pair of brackets holds all of `text`."""
    tokens = [(m[0], m.start(), m.end()) for m in _TOKEN.finditer(text)]
    if len(tokens) < 2:
        return None
    first, last = tokens[0][0], tokens[-1][0]
    if first not in ("(", "[", "{", "\\{", "\\langle", "<") or last not in (")", "]", "}", "\\}", "\\rangle", ">"):
        return None
    depth = 0
    for mark, start, _ in tokens[:-1]:
        if mark in _OPEN or mark in ("\\{", "\\langle") or (mark == "<" and start == 0):
            depth += 1
        elif mark in _CLOSE or mark in ("\\}", "\\rangle"):
            depth -= 1
        if depth == 0:
            return None
    return first, text[tokens[0][2] : tokens[-1][1]].strip(), last


def _interval(name: str, low: str, high: str, closed: tuple[bool, bool]) -> Parts:
    return Parts("interval", (low, high), ("[" if closed[0] else "(") + ("]" if closed[1] else ")"), (name,))


def _inequality(text: str) -> Parts | None:
    """`1 < x \\le 2`, `x > 3` or `3 \\ge x` as the interval it means."""
    pieces = [piece.strip() for piece in _CHAIN.split(text)]
    if len(pieces) == 3:
        left, relation, right = pieces
        if VARIABLE.fullmatch(right) and not VARIABLE.fullmatch(left):
            left, right = right, left
            relation = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(relation) or {
                "\\le": "\\ge", "\\ge": "\\le", "\\lt": "\\gt", "\\gt": "\\lt",
            }[relation]  # fmt: skip
        if not VARIABLE.fullmatch(left) or not right:
            return None
        if relation in _LESS:
            return _interval(left, "-\\infty", right, (False, _LESS[relation]))
        return _interval(left, right, "\\infty", (_MORE[relation], False))
    if len(pieces) == 5 and VARIABLE.fullmatch(pieces[2]):
        low, first, _, second, high = pieces
        if first in _LESS and second in _LESS:
            return _interval(pieces[2], low, high, (_LESS[first], _LESS[second]))
        if first in _MORE and second in _MORE:
            return _interval(pieces[2], high, low, (_MORE[second], _MORE[first]))
    return None


def _matrix(text: str) -> Parts | None:
    if not (match := _MATRIX.fullmatch(text)):
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2].replace("\\hline", "")) if row.strip()]
    cells = tuple(Parts("row", tuple(cell.strip() for cell in split(row, ("&",)))) for row in rows)
    if match[1] == "cases":
        return _system([cell for row in cells for cell in row.items if isinstance(cell, str)])
    return Parts("matrix", cells, "|" if match[1] in ("vmatrix", "Vmatrix") else "[")


def _system(items: Sequence[str]) -> Parts | None:
    """x = 5, y = 3 by name; x = 1 or x = 2 as a set of values."""
    found = [_ASSIGNED.fullmatch(item) for item in items]
    if not all(found):
        return None
    names = tuple(match[1] for match in found if match)
    values = tuple(match[2].strip() for match in found if match)
    if len(set(names)) == 1:
        return Parts("set", values)
    return Parts("system", values, "", names) if len(set(names)) == len(names) else None


def _pieces(text: str) -> list[str]:
    """A bare list by commas, semicolons, "and" and "or"."""
    text = re.sub(r"(?:\s*,)?\s+(?:and|or)\s+(?!(?:and|or)\s)", ", ", text)
    found = split(text, (";",))
    return found if len(found) > 1 else split(text, (",",))


def read(text: str) -> Parts | None:
    """The parts of `text` (tidied); None when it is one thing, or nothing that this module knows."""
    if member := _MEMBER.fullmatch(text):
        text = member[1].strip()
    held = _enclosed(text)
    if matrix := _matrix(held[1] if held and held[1].startswith("\\begin") else text):
        return matrix
    union = split(text, ("\\cup", "∪")) if "\\cup" in text else re.split(r"\s+(?:U|or)\s+", text)
    if len(union) > 1:
        parts = [read(piece) for piece in union]
        if all(part is not None and part.kind in ("interval", "set", "tuple") for part in parts):
            return Parts("union", tuple(part for part in parts if part))
    if text in ("\\emptyset", "\\{\\}"):
        return Parts("set", ())
    if (interval := _inequality(text)) is not None:
        return interval
    if held:
        opening, inside, closing = held
        items = tuple(split(inside, (",",)) if split(inside, (",",)) != [inside] else split(inside, (";",)))
        if opening in ("\\{", "{") and closing in ("\\}", "}"):
            described = "\\mid" in inside or "|" in inside or ":" in inside
            return (
                None if described else Parts("set", tuple(sign for item in items for sign in _signs(item) or (item,)))
            )
        if opening in ("\\langle", "<"):
            return Parts("tuple", items, "()") if len(items) > 1 else None
        if len(items) < 2 or "" in items or opening not in "([" or closing not in ")]":
            return None
        if len(items) > 2:
            return Parts("tuple", items, "()" if opening + closing in ("()", "[]") else opening + closing)
        return Parts("interval", items, opening + closing)
    items = tuple(_pieces(text))
    if len(items) > 1 and "" not in items:
        return _system(items) or Parts("list", items)
    signs = _signs(text)
    return Parts("set", signs) if signs else None


def _signs(text: str) -> tuple[str, str] | None:
    """Both values of `a \\pm b`, without the name before "="."""
    if named := _ASSIGNED.fullmatch(text):
        text = named[2]
    match = _PLUS_MINUS.match(text)
    if not match or "\\pm" in match[2]:
        return None
    before = match[1].strip()
    return (f"{before}+({match[2]})", f"{before}-({match[2]})") if before else (match[2], f"-({match[2]})")


Same = Callable[[str, str], bool]


def _same_item(mine: "str | Parts", wanted: "str | Parts", same: Same) -> bool:
    if isinstance(mine, Parts) and isinstance(wanted, Parts):
        return same_parts(mine, wanted, same) is True
    return isinstance(mine, str) and isinstance(wanted, str) and same(mine, wanted)


def _infinite(end: str) -> int:
    """-1 and 1 for the two infinities, 0 for a number."""
    if end.startswith("-"):
        return -1 if _INFINITY.match(end[1:].strip()) else 0
    return int(_INFINITY.match(end) is not None)


def _same_end(mine: str, wanted: str, same: Same) -> bool:
    ends = (_infinite(mine), _infinite(wanted))
    return ends[0] == ends[1] if any(ends) else same(mine, wanted)


def _unordered(mine: Sequence["str | Parts"], wanted: Sequence["str | Parts"], same: Same) -> bool:
    left = list(wanted)
    for item in mine:
        match = next((other for other in left if _same_item(item, other, same)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _distinct(items: Sequence["str | Parts"], same: Same) -> list["str | Parts"]:
    found: list[str | Parts] = []
    for item in items:
        if not any(_same_item(item, other, same) for other in found):
            found.append(item)
    return found


def same_parts(mine: Parts, wanted: Parts, same: Same) -> bool | None:
    """Whether two answers of several parts are equal; None when their kinds can't be compared.

    A set has neither order nor repetition; a bare list equals it, or a tuple in the tuple's order. Brackets matter.
    """
    kinds = {mine.kind, wanted.kind}
    if max(len(mine.items), len(wanted.items)) > MAX_PARTS:
        return False
    if kinds == {"system"}:
        if sorted(mine.names) != sorted(wanted.names):
            return False
        values = dict(zip(wanted.names, wanted.items, strict=True))
        return all(_same_item(item, values[name], same) for name, item in zip(mine.names, mine.items, strict=True))
    if (kinds <= {"set", "list", "union"} and "set" in kinds) or kinds == {"union"}:
        return _unordered(_distinct(mine.items, same), _distinct(wanted.items, same), same)
    if kinds == {"list"}:
        return len(mine.items) == len(wanted.items) and _unordered(mine.items, wanted.items, same)
    ordered = {"interval", "tuple", "list", "matrix", "row", "system"}
    if kinds <= ordered and len(kinds & {"matrix", "row"}) in (0, len(kinds)):
        if len(mine.items) != len(wanted.items) or (
            mine.brackets and wanted.brackets and mine.brackets != wanted.brackets
        ):
            return False
        if kinds == {"interval"} and mine.names and wanted.names and mine.names != wanted.names:
            return False
        if "list" in kinds and (mine.brackets or wanted.brackets) not in ("", "()"):
            return False
        end = _same_end if "interval" in kinds else None
        return all(
            end(a, b, same) if end and isinstance(a, str) and isinstance(b, str) else _same_item(a, b, same)
            for a, b in zip(mine.items, wanted.items, strict=True)
        )
    return False

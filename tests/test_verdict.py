"""Laws of the verdict, and LaTeX that hostile text can't break out of."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy.report import latex
from synergy.report.tables import Table
from synergy.report.verdict import ABOVE, APART, BELOW, WITHIN, verdict

number = st.floats(-1e6, 1e6)
reach = st.floats(0, 1e5)
anything = st.none() | st.floats()


@given(number, number, reach, reach, reach)
def test_exactly_one_and_the_right_one(ours: float, paper: float, below: float, above: float, error: float) -> None:
    low, high = ours - below, ours + above
    told = verdict(ours, paper, [(low, high)], error)
    if low - error <= paper <= high + error:
        assert told == WITHIN
    else:
        assert told == (ABOVE if ours > paper else BELOW)


@given(number, number, reach, reach)
def test_a_mirror_swaps_above_and_below(ours: float, paper: float, below: float, above: float) -> None:
    swap = {ABOVE: BELOW, BELOW: ABOVE, WITHIN: WITHIN}
    told = verdict(ours, paper, [(ours - below, ours + above)])
    assert verdict(-ours, -paper, [(-ours - above, -ours + below)]) == swap[told]


@given(number, number, reach, reach, reach)
def test_what_is_within_stays_so_in_a_wider_interval(
    ours: float, paper: float, below: float, above: float, more: float
) -> None:
    ends = (ours - below, ours + above)
    if verdict(ours, paper, [ends]) == WITHIN:
        assert verdict(ours, paper, [(ends[0] - more, ends[1] + more)]) == WITHIN
        assert verdict(ours, paper, [(ours, ours), ends]) == WITHIN, "any of the intervals is enough"
        assert verdict(ours, paper, [ends], more) == WITHIN


@given(anything, anything, st.lists(st.tuples(anything, anything)), reach, st.text(min_size=1))
def test_a_reason_goes_before_all(ours: float | None, paper: float | None, ends: list[tuple[float | None, float | None]],
                                  error: float, why: str) -> None:  # fmt: skip
    assert verdict(ours, paper, ends, error, why) == APART + why


@given(anything, st.none() | number, st.lists(st.tuples(anything, anything)))
def test_nothing_is_judged_without_number_and_interval(
    ours: float | None, paper: float | None, ends: list[tuple[float | None, float | None]]
) -> None:
    told = verdict(ours, paper, ends)
    usable = any(a is not None and b is not None and math.isfinite(a) and math.isfinite(b) for a, b in ends)
    if ours is None or not math.isfinite(ours) or paper is None or not usable:
        assert told.startswith(APART)
    assert told in (WITHIN, ABOVE, BELOW) or told.startswith(APART)


@given(st.text())
def test_escaped_text_is_text(text: str) -> None:
    told = latex.escape(text)
    bare = re.sub(
        r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textquotedbl)\{\}", "", told
    )
    bare = re.sub(r"\$(?:-|\\pm|\\times|\\to)\$", "", re.sub(r"\\[&%$#_{}]", "", bare))
    assert not re.search(r"[\\&%$#_{}^\n\r\0]", bare)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_a_table_keeps_its_structure(rows: list[tuple[str, str]]) -> None:
    text = latex.table(Table(("model", "here"), tuple(rows)), "A caption {", "name")
    lines = text.splitlines()
    assert sum(line.endswith(r" \\") for line in lines) == len(rows) + 1
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(rows)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 1 and not line.startswith(("[", "*"))
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


def test_a_parser_of_latex_reads_it_back() -> None:
    walker = pytest.importorskip("pylatexenc.latexwalker")
    rows = (("a_b & 50 % \\input{x}", "[1.0, −2.0] ± 3"), ("~^<>|\"#$", "{}"))  # fmt: skip
    text = latex.table(Table(("model", "here"), rows), "100 % of $x_1$", "name")
    nodes, _, _ = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    (table,) = (node for node in nodes if node.isNodeType(walker.LatexEnvironmentNode))
    (tabular,) = (node for node in table.nodelist if node.isNodeType(walker.LatexEnvironmentNode))
    assert (table.environmentname, tabular.environmentname) == ("table", "tabular")
    macros = [node.macroname for node in tabular.nodelist if node.isNodeType(walker.LatexMacroNode)]
    assert macros.count("\\") == 3 and "input" not in macros
    converter = pytest.importorskip("pylatexenc.latex2text").LatexNodes2Text()
    for cell in (*rows[0], "{}#$~"):
        assert converter.latex_to_text(latex.escape(cell)).replace("-", "−") == cell.replace("-", "−")

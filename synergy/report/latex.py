"""A table in LaTeX: ``booktabs``, to be included in a paper by ``\\input``."""

from __future__ import annotations

from synergy.report.tables import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u00a0": "~",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
}


def escape(text: str) -> str:
    """Text in a cell: nothing of it is a command, ends the cell or starts a line. Control characters are left out."""
    shown = " ".join(text.split()) if "\u00a0" not in text else text.replace("\n", " ")
    return "".join(_SPECIAL.get(char, char if char.isprintable() else "") for char in shown)


def table(shown: Table, caption: str, label: str) -> str:
    """A floating table. caption: plain text; label: letters, digits, ``_`` and ``-``."""
    columns = "l" * shown.words + "r" * (len(shown.columns) - shown.words)
    lines = [" & ".join(_cell(cell) for cell in row) + r" \\" for row in (shown.columns, *shown.rows)]
    body = [lines[0], r"\midrule", *lines[1:]]
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cell(text: str) -> str:
    """A bracket at the start of a line would be read as the optional argument of the line end before it."""
    told = escape(text)
    return f"{{}}{told}" if told.startswith(("[", "*")) else told

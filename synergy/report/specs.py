"""The paper's tables and its Figure 1 as data: which of our recipes make the rows of each, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from synergy.errors import UserError

What = Literal["accuracy", "gain", "length", "words"]
UNITS: dict[str, str] = {
    "accuracy": "accuracy in percent",
    "gain": "gain over base in points",
    "length": "response length in tokens",
    "words": "words per 1,000 responses",
}


@dataclass(frozen=True)
class Row:
    """recipe: ours; theirs: the name of the same row in the paper's data (``synergy/report/paper``)."""

    recipe: str
    theirs: str


@dataclass(frozen=True)
class Spec:
    """name: of its files. by_level: a number per difficulty level instead of one over all of them."""

    name: str
    title: str
    rows: tuple[Row, ...]
    what: What = "accuracy"
    by_level: bool = False


def _rows(*recipes: str, **theirs: str) -> tuple[Row, ...]:
    """theirs: names of ablations in the paper's data; all others bear the recipe's."""
    return tuple(Row(recipe, theirs.get(recipe.rpartition("/")[2], recipe)) for recipe in recipes)


STRATEGIES = ("sft", "rl", "two_stage", "interleaved", "progressive", "data_mixing", "model_merging")
SPECS = {
    "table=1": Spec(
        "table_1",
        "Table 1: long-CoT SFT on three sets",
        _rows(
            "base",
            "ablation/sft_s1",
            "ablation/sft_s1_1",
            "sft",
            sft_s1="sft_s1_gemini2",
            sft_s1_1="sft_s1_1_r1",
        ),
    ),
    "table=2": Spec("table_2", "Table 2: RL with and without the KL term", _rows("ablation/rl_kl_0", "rl", rl_kl_0="rl_no_kl")),
    "table=3": Spec("table_3", "Table 3: RL with and without the easiest questions", _rows("rl", "ablation/rl_without_easiest",
                    rl_without_easiest="rl_without_easiest")),
    "table=5": Spec("table_5", "Table 5: words of reflection", _rows("base", "sft", "rl"), "words"),
    "table=6": Spec("table_6", "Table 6: SFT, RL and five ways to combine them", _rows(*STRATEGIES)),
    "table=7": Spec("table_7", "Table 7: response length of RL and data mixing", _rows("rl", "data_mixing"), "length"),
    "figure=1": Spec("figure_1", "Figure 1: gain over the base model per level", _rows(*STRATEGIES), "gain", by_level=True),
}  # fmt: skip
UNKNOWN = {"table=4": "Table 4: its numbers are not in the paper's data that Synergy ships (synergy/report/paper)"}
ALL = "all"
OTHERS = Spec("other_models", "Models that stand for no row of the paper", (Row("", ""),))


def choose(words: Sequence[str]) -> list[str]:
    """Names of specs that words like ``table=6``, ``table=1,2``, ``figure=1`` or ``all`` ask for, in the paper's order.

    Raises UserError for what the paper does not have, or what is not known of it.
    """
    wanted = set()
    for word in words:
        kind, _, numbers = word.partition("=")
        for number in numbers.split(",") if numbers else [ALL]:
            name = f"{kind}={number}"
            if ALL in (kind, number):
                wanted |= {one for one in SPECS if kind in (ALL, one.partition("=")[0])}
            elif name in UNKNOWN:
                raise UserError(f"{name}: {UNKNOWN[name]}; choose one of {', '.join(SPECS)}, or all")
            elif name not in SPECS:
                raise UserError(f"{name}: no such table or figure; choose one of {', '.join(SPECS)}, or all")
            else:
                wanted.add(name)
    return [name for name in SPECS if name in wanted]


def recipes(names: Sequence[str]) -> list[str]:
    """The recipes that make the rows of these specs, each once, the base model first."""
    found = dict.fromkeys(row.recipe for name in names for row in SPECS[name].rows)
    return sorted(found, key=lambda recipe: recipe != "base")


def known() -> dict[str, str]:
    """Every name that a row may be called by, ours and the paper's -> our recipe."""
    rows = [row for spec in SPECS.values() for row in spec.rows]
    return {row.theirs: row.recipe for row in rows} | {row.recipe: row.recipe for row in rows}

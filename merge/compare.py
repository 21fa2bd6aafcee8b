"""``python -m merge.compare BASE SFT RL [--json FILE]``: what SFT and RL changed, module by module, before they are merged.

Why: SFT moves weights many times as far as RL, and where the two pull in opposite directions, an average keeps neither (task
vectors of SFT and RLVR: arXiv 2605.00610). Streams the tensors with numpy: a 7B model needs memory for a few pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synergy.driver import checkpoint
from synergy.driver.checkpoint import Tensor
from synergy.driver.values import each, side_by_side
from synergy.errors import UserError

PATTERNS = (
    (r"visual\.blocks\.(\d+)\.", "vision block"),
    (r"visual\.merger\.", "projector"),
    (r"visual\.", "vision embedding"),
    (r"model\.embed_tokens\.", "embedding"),
    (r"model\.layers\.(\d+)\.self_attn\.", "attention"),
    (r"model\.layers\.(\d+)\.mlp\.", "mlp"),
    (r"model\.layers\.(\d+)\..*norm", "norms"),
    (r"model\.norm\.", "final norm"),
    (r"lm_head\.", "head"),
)
"""Published tensor names of Qwen2.5-VL -> part of the model; the group is the layer."""


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.einsum("i,i", x, y))  # not BLAS, whose threads wait for each other where cores are busy


@dataclass
class Sums:
    """What is added up over a module's elements. s, r: delta of SFT and of RL against the base."""

    n: int = 0
    base: float = 0.0
    ss: float = 0.0
    rr: float = 0.0
    sr: float = 0.0
    changed_sft: int = 0
    changed_rl: int = 0
    both: int = 0
    opposed: int = 0

    def add(self, base: np.ndarray, sft: np.ndarray, rl: np.ndarray) -> None:
        s, r = sft - base, rl - base
        moved = (s != 0) & (r != 0)
        self.n += base.size
        self.base += _dot(base, base)
        self.ss, self.rr, self.sr = self.ss + _dot(s, s), self.rr + _dot(r, r), self.sr + _dot(s, r)
        self.changed_sft += int(np.count_nonzero(s))
        self.changed_rl += int(np.count_nonzero(r))
        self.both += int(np.count_nonzero(moved))
        self.opposed += int(np.count_nonzero(moved & ((s > 0) != (r > 0))))

    def __iadd__(self, other: Sums) -> Sums:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class Module:
    """One row. norm_base, delta_sft, delta_rl: Euclidean norms. delta_ratio: delta_sft over delta_rl. cosine: of the two
    deltas. sign_conflict: share of opposite signs among elements that both changed. changed_*: share of elements. None: there
    is nothing to divide by."""

    module: str
    part: str
    layer: int | None
    parameters: int
    norm_base: float
    delta_sft: float
    delta_rl: float
    delta_ratio: float | None
    cosine: float | None
    sign_conflict: float | None
    changed_sft: float
    changed_rl: float


@dataclass
class _Table:
    sums: dict[tuple[str, int | None], Sums] = field(default_factory=dict)

    def at(self, part: str, layer: int | None) -> Sums:
        return self.sums.setdefault((part, layer), Sums())


def place(name: str) -> tuple[str, int | None]:
    """Part and layer of a tensor; ``other`` for a name that is not Qwen2.5-VL's."""
    for pattern, part in PATTERNS:
        found = re.match(pattern, name)
        if found:
            return part, int(found.group(1)) if found.groups() else None
    return "other", None


def compare(base: Path, sft: Path, rl: Path) -> list[Module]:
    """A row per part and layer, one per part that has layers, and one for the whole model (``all``).

    Raises UserError where the three do not have the same tensors.
    """
    models = [checkpoint.read(folder) for folder in (base, sft, rl)]
    if checkpoint.tied(base):
        for tensors in models:
            tensors.pop("lm_head.weight", None)
    _same(models, (base, sft, rl))
    table = _Table()

    def added(tensor: Tensor) -> Sums:
        made = Sums()
        for pieces in side_by_side([tensors[tensor.name] for tensors in models]):
            made.add(*pieces)
        return made

    for name, sums in each(added, models[0].values()).items():
        whole = table.at(*place(name))
        whole += sums
    order = [part for _, part in PATTERNS] + ["other"]
    places = sorted(table.sums, key=lambda at: (order.index(at[0]), at[1] or 0))
    rows = [_row(part, layer, table.sums[part, layer]) for part, layer in places]
    layered = dict.fromkeys(part for part, layer in places if layer is not None)
    for part in (*layered, "all"):
        whole = Sums()
        for (other, _), sums in table.sums.items():
            if part in (other, "all"):
                whole += sums
        rows.append(_row(part, None, whole))
    return rows


def _same(models: list[dict[str, Tensor]], folders: tuple[Path, Path, Path]) -> None:
    for tensors, folder in zip(models[1:], folders[1:], strict=True):
        odd = sorted(set(tensors) ^ set(models[0])) or [n for n, t in tensors.items() if t.shape != models[0][n].shape]
        if odd:
            raise UserError(
                f"{folder} and {folders[0]} differ in {len(odd)} tensors (first: {odd[0]}); compare models of one base"
            )


def _row(part: str, layer: int | None, sums: Sums) -> Module:
    s, r = math.sqrt(sums.ss), math.sqrt(sums.rr)
    return Module(
        module=part if layer is None else f"{part} {layer}",
        part=part,
        layer=layer,
        parameters=sums.n,
        norm_base=math.sqrt(sums.base),
        delta_sft=s,
        delta_rl=r,
        delta_ratio=s / r if r else None,
        cosine=sums.sr / (s * r) if s and r else None,
        sign_conflict=sums.opposed / sums.both if sums.both else None,
        changed_sft=sums.changed_sft / max(sums.n, 1),
        changed_rl=sums.changed_rl / max(sums.n, 1),
    )


def text(rows: list[Module]) -> str:
    """The rows as a table of fixed width."""
    lines = [f"{'module':<20}{'parameters':>14}{'|SFT|':>11}{'|RL|':>11}{'ratio':>9}{'cosine':>9}{'conflict':>10}"]
    for row in rows:
        cells = [f"{value:.3g}" if value is not None else "-" for value in (row.delta_ratio, row.cosine)]
        conflict = f"{100 * row.sign_conflict:.1f} %" if row.sign_conflict is not None else "-"
        numbers = f"{row.parameters:>14,}{row.delta_sft:>11.3g}{row.delta_rl:>11.3g}"
        lines.append(f"{row.module:<20}{numbers}{cells[0]:>9}{cells[1]:>9}{conflict:>10}")
    return "\n".join(lines)


def document(rows: list[Module]) -> Mapping[str, Any]:
    return {"schema": 1, "modules": [asdict(row) for row in rows]}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m merge.compare", description="what SFT and RL changed, by module")
    for name in ("base", "sft", "rl"):
        parser.add_argument(name, type=Path, help="folder of a checkpoint")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args(argv)
    try:
        rows = compare(given.base, given.sft, given.rl)
    except (UserError, OSError) as error:
        print(f"merge.compare: {error}", file=sys.stderr)
        return 2
    if given.json:
        given.json.write_text(json.dumps(document(rows), indent=1, allow_nan=False) + "\n")
    print(text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

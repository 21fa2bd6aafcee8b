"""Model FLOPs utilisation of the SFT and RL stages of a run directory, against the matrix peak that this GPU reaches.

    python benchmarks/gpu/mfu.py RUN_DIR BASE [gpus=1]        # BASE: the base model's folder

A row per stage and step: tokens, seconds, and the share of the measured peak (bfloat16, 8192 x 8192 x 8192) that the model's
own arithmetic takes: 6 FLOPs a trained parameter and token, 2 a frozen one and patch, 6 x layers x hidden x length for causal
attention; what gradient checkpointing computes again, and padding, count as lost. SFT: seconds per step by LLaMA-Factory's
clock; its first step is left out. RL: verl's time for the update alone (actor).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from synergy.data import checks
from synergy.driver import ledger
from synergy.stages import memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PATCHES = 4
"""To a visual token."""
PROMPT = 340
"""Tokens of chain.py's prompts, on average."""


def peak(size: int = 8192, seconds: float = 3.0) -> float:
    """FLOPs a second of a bfloat16 matrix product."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        for _ in range(20):
            left @ right
        torch.cuda.synchronize()
        count += 20
    return 2 * size**3 * count / (time.monotonic() - start)


def flops(of: memory.Model, lengths: Sequence[float], visual: float) -> float:
    """Of forward and backward over rows of these tokens, and the frozen vision tower's forward. visual: tokens of images."""
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    return 6 * of.trained * tokens + 6 * of.layers * of.hidden * squares + 2 * of.frozen * PATCHES * visual


def sft_rows(data: Path, media: Path, words: Tokenizer) -> tuple[list[int], int]:
    """Tokens of each row, and of all images."""
    visual = json.loads((media / "records" / "train_visual_tokens.json").read_text())
    file = data / "sft" / "train.json"
    seen = [sum(visual[name] for name in row["images"]) for row in json.loads(file.read_text())]
    return checks.row_lengths(file, visual, words), sum(seen)


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise SystemExit(__doc__)
    root, base = Path(argv[0]), Path(argv[1])
    gpus = int(argv[2].removeprefix("gpus=")) if len(argv) > 2 else 1
    of = memory.model(base, True)
    if of is None:
        raise SystemExit(f"{base} is no checkpoint")
    best = peak()
    print(f"peak {best / 1e12:.0f} TFLOP/s a GPU, measured")
    words, entries = checks.tokenizer(base), ledger.read(root / "ledger.jsonl").values()
    places = {entry.digest: root / entry.output for entry in entries}
    for entry in entries:
        pace, metrics = entry.figures.get("seconds_per_step"), entry.figures.get("metrics")
        if entry.kind == "sft" and pace:
            lengths, visual = sft_rows(places[entry.inputs["data"]], places[entry.inputs["media"]], words)
            config = entry.identity["settings"]["config"]
            part = config["num_train_epochs"] / entry.figures["steps"]  # of an epoch, in a step
            share = flops(of, lengths, visual) * part / pace / best / gpus
            print(f"{entry.name}: {sum(lengths) * part:,.0f} tokens a step, {pace:.2f} s, MFU {share:.3f}")
        if entry.kind == "rl" and metrics:
            for line in ((root / entry.output).parent / metrics).read_text().splitlines():
                row = json.loads(line)
                rows = row["tokens"] / (row["length"] + PROMPT)
                share = flops(of, [row["tokens"] / rows] * round(rows), 0) / row["update_seconds"] / best / gpus
                print(
                    f"{entry.name}, step {row['step']}: {row['tokens']:,.0f} tokens, step {row['seconds']:.1f} s, "
                    f"update {row['update_seconds']:.1f} s, MFU of the update {share:.3f}"
                )


if __name__ == "__main__":
    main(sys.argv[1:])

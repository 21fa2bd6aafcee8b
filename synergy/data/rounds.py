"""One round of RL: which questions it sees, in which order, and what zero-pass questions get of their trace.

The order of all rounds together is fixed by the seed: epoch after epoch, each a shuffle of all training questions, cut into
equal rounds. So a recipe of any number of rounds sees every question as often as plain RL.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy.data import checks, records, writers
from synergy.data.records import Record
from synergy.data.writers import Turn
from synergy.errors import UserError


def order(count: int, total: int, seed: int) -> list[int]:
    """Indices of ``count`` questions, shuffled anew for every pass, ``total`` in all."""
    rng, found = random.Random(seed), list[int]()
    while len(found) < total:
        epoch = list(range(count))
        rng.shuffle(epoch)
        found += epoch
    return found[:total]


def cut(total: int, index: int, rounds: int, batch: int) -> slice:
    """Round ``index`` of ``rounds``, in whole batches as far as there are any."""
    batches = total // batch
    start, stop = (batches * i // rounds * batch for i in (index, index + 1))
    return slice(start, total if index == rounds - 1 and batches == 0 else stop)


def prefix(trace: str, share: float, unit: str, words: Any) -> str:
    """The first ``share`` of a trace, in whole tokens or sentences, rounded up."""
    if unit == "tokens":
        ends = [end for _, end in words.encode(trace, add_special_tokens=False).offsets]
    else:
        ends = [match.end() for match in re.finditer(r"[.!?;\n]+\s*|$", trace) if match.end()]
    keep = math.ceil(share * len(ends))
    return trace[: ends[keep - 1]] if keep else ""


def latest_passes(files: Sequence[Path]) -> dict[str, int]:
    """Question id -> passes when it was last tried; files oldest first."""
    found: dict[str, int] = {}
    for file in files:
        found.update({row["id"]: row["passes"] for _, row in records.lines(file)})
    return found


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes rl/train.parquet, order.json (ids in order) and, for zero-pass questions, sft/ with their traces or prefixes."""
    data = Path(spec["data"]) / "records"
    questions = records.read(data / "train.jsonl")
    total = spec["steps"] * spec["batch"] if spec["steps"] else len(questions) * spec["epochs"]
    whole = order(len(questions), total, spec["seed"])
    chosen = [questions[i] for i in whole[cut(total, spec["index"], spec["rounds"], spec["batch"])]]
    passes, share = latest_passes([Path(p) for p in spec["passes"]]), spec["prefix"]
    zero = {r.id: r for r in chosen if passes.get(r.id) == 0 and r.trace} if share > 0 else {}
    words = checks.tokenizer(Path(spec["base"]))
    starts = {name: prefix(str(r.trace), share, spec["unit"], words) for name, r in zero.items()}
    turns = [Turn(record, starts.get(record.id, "")) for record in chosen if share < 1 or record.id not in zero]
    if len(turns) < spec["batch"]:
        raise UserError(
            f"round {spec['index'] + 1} leaves {len(turns)} questions for RL, less than one batch of {spec['batch']}: "
            "lower rl.verl.data.train_batch_size or recipe.rounds, or give more data"
        )
    visual = json.loads((data / "train_visual_tokens.json").read_text())
    checks.prompts([(t.record, t.prefix) for t in turns], visual, words, spec["instruction"], spec["max_prompt_length"])
    writers.verl(out / "rl" / "train.parquet", turns, data, spec["instruction"], spec["prefix_rollouts"])
    rows: list[tuple[Record, str, str | None]] = [(r, starts[name], spec["instruction"]) for name, r in zero.items()]
    writers.llamafactory(out / "sft", {"train": rows})
    (out / "order.json").write_text(json.dumps([turn.record.id for turn in turns]) + "\n")
    known = [r.id for r in chosen if r.id in passes]
    print(
        f"round {spec['index'] + 1}: {len(turns)} RL rows, {len(zero)} zero-pass questions with {share:.0%} of their trace"
    )
    return {"rl_rows": len(turns), "zero_pass": len(zero), "counted": len(set(known)), "prefix": share}

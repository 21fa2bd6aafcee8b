"""One round of RL: which questions it sees, in which order, and what zero-pass questions get of their trace.

The order of all rounds together is fixed by the seed: epoch after epoch, each a shuffle of all training questions, cut into
equal rounds. So a recipe of any number of rounds sees every question as often as plain RL.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence, Set
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
        found = [match.end() for match in re.finditer(r"(?:[.!?;]+(?=\s|$)|\n+)\s*|$", trace) if match.end()]
        ends = list(dict.fromkeys(found))  # a trace that ends with a sentence ends there once
    keep = math.ceil(share * len(ends))
    return trace[: ends[keep - 1]] if keep else ""


def latest_passes(files: Sequence[Path]) -> dict[str, int]:
    """Question id -> passes when it was last tried; files oldest first."""
    found: dict[str, int] = {}
    for file in files:
        found.update({row["id"]: row["passes"] for _, row in records.lines(file)})
    return found


def _always_right(files: Sequence[Path]) -> set[str]:
    return {row["id"] for file in files for _, row in records.lines(file) if row["passes"] == row["n"]}


def share_out(
    slots: Sequence[str], carried: Sequence[str], zero: Set[str], batch: int
) -> tuple[list[str], list[str], list[str]]:
    """Ids in a round's slots -> those that SFT takes in RL's place (``zero``), those that RL sees, and those that wait.

    What does not fill a batch of RL waits for the next round (``carried`` there), since verl drops a last batch that is not
    full. So over all rounds every slot of plain RL is used once, by SFT or by RL, in order; less than one batch is left over.
    """
    waiting = [*carried, *slots]
    sft, rl = [name for name in waiting if name in zero], [name for name in waiting if name not in zero]
    whole = len(rl) // batch * batch
    return sft, rl[:whole], rl[whole:]


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes rl/train.parquet, order.json (RL's ids in order), left.json (ids that wait for the next round) and sft/: whole
    traces (prefix 1) or prefixes of zero-pass questions; with ``sft_on: all`` whole traces of all the round's questions."""
    data = Path(spec["data"]) / "records"
    questions = records.read(data / "train.jsonl")
    if spec["drop_easiest"]:
        easy = _always_right([Path(p) for p in spec["passes"]])
        questions = [record for record in questions if record.id not in easy]
    by_id = {record.id: record for record in questions}
    total = spec["steps"] * spec["batch"] if spec["steps"] else len(questions) * spec["epochs"]
    whole = order(len(questions), total, spec["seed"])
    slots = [questions[i].id for i in whole[cut(total, spec["index"], spec["rounds"], spec["batch"])]]
    carried = json.loads(Path(spec["carry"]).read_text()) if spec["carry"] else []
    passes, share = latest_passes([Path(p) for p in spec["passes"]]), spec["prefix"]
    waiting = [*carried, *slots]
    zero = {name for name in waiting if passes.get(name) == 0} if share > 0 else set()
    sft, rl, left = share_out(slots, carried, zero if share == 1 else set(), spec["batch"])
    if 0 < share < 1:
        sft = [name for name in rl if name in zero]
    if spec["sft_on"] == "all":
        sft = slots
    none_to_come = spec["rounds"] == 1 or total < spec["batch"]  # else RL waits for the questions of the rounds to come
    if not rl and none_to_come:
        raise UserError(
            f"round {spec['index'] + 1} leaves {len(left)} questions for RL, less than one batch of {spec['batch']}: "
            "lower rl.verl.data.train_batch_size or recipe.rounds, or give more data"
        )
    words = checks.tokenizer(Path(spec["base"]))
    starts = {name: prefix(_trace(by_id[name], spec), share, spec["unit"], words) for name in sft}
    turns = [Turn(by_id[name], starts.get(name, "") if share < 1 else "") for name in rl]
    visual = json.loads((data / "train_visual_tokens.json").read_text())
    checks.prompts([(t.record, t.prefix) for t in turns], visual, words, spec["instruction"], spec["max_prompt_length"])
    writers.verl(out / "rl" / "train.parquet", turns, data, spec["instruction"], spec["prefix_rollouts"])
    validation(spec, data, words, out / "rl" / "validation.parquet")
    writers.llamafactory(out / "sft", {"train": [(by_id[name], starts[name], spec["instruction"]) for name in sft]})
    (out / "order.json").write_text(json.dumps(rl) + "\n")
    (out / "left.json").write_text(json.dumps(left) + "\n")
    print(
        f"round {spec['index'] + 1}: {len(rl)} RL rows, {len(sft)} SFT rows with {share:.0%} of their trace, "
        f"{len(left)} questions wait for a full batch"
    )
    counted = len({name for name in slots if name in passes})
    told = {"rl_rows": len(rl), "sft_rows": len(sft), "zero_pass": len(zero), "counted": counted, "left": len(left)}
    return {**told, "prefix": share}


def validation(spec: Mapping[str, Any], data: Path, words: Any, file: Path) -> None:
    """The validation split, if there is one, for verl's own validation (rl.verl.trainer.test_freq)."""
    if (data / "validation.jsonl").exists():
        turns = [Turn(record, "") for record in records.read(data / "validation.jsonl")]
        visual = json.loads((data / "validation_visual_tokens.json").read_text())
        asked = [(turn.record, "") for turn in turns]
        checks.prompts(asked, visual, words, spec["instruction"], spec["max_prompt_length"])
        writers.verl(file, turns, data, spec["instruction"], split="validation")


def _trace(record: Record, spec: Mapping[str, Any]) -> str:
    if record.trace:
        return record.trace
    why = "recipe.sft_on=all" if spec["sft_on"] == "all" else "none of its responses was right"
    raise UserError(
        f"record {record.id!r} needs a trace in round {spec['index'] + 1} ({why}), and has none: add 'trace' to its line in "
        "data.train, or leave the question out"
    )

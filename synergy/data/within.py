"""The questions of an RL stage that has SFT in its steps, and what each brings of its trace (launch/plugins/
verl_within_rows.py, verl_within_rollout.py). Order and epochs are those of plain RL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from synergy.data import checks, records, rounds, writers
from synergy.data.records import Record
from synergy.data.shares import prefix_share
from synergy.data.writers import Turn
from synergy.errors import UserError


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Writes rl/train.parquet and order.json as a round does; each row with its whole trace (``within_step: {}``), or zero-pass
    questions with a prefix that falls from step to step (``within_step: {schedule, unit}``). ``{rollouts: n}``: so many are
    generated of each question, whatever verl's rollout.n."""
    data = Path(spec["data"]) / "records"
    questions, words = records.read(data / "train.jsonl"), checks.tokenizer(Path(spec["base"]))
    total = spec["steps"] * spec["batch"] if spec["steps"] else len(questions) * spec["epochs"]
    asked = [
        questions[i]
        for i in rounds.order(len(questions), total, spec["seed"])[: total // spec["batch"] * spec["batch"]]
    ]
    if not asked:
        raise UserError(
            f"{total} questions are less than one batch of {spec['batch']}: lower rl.verl.data.train_batch_size, or give more"
        )
    fitting, told = _fitting(asked, spec["room"], words)
    passes = rounds.latest_passes([Path(p) for p in spec["passes"]])
    if "schedule" in spec["within_step"]:
        zero = {name for name in fitting if passes.get(name) == 0}
        turns = _begun(asked, spec["within_step"], zero, words, spec["batch"])
        told |= {"zero_pass": len(zero), "prefixes": sum(bool(turn.prefix) for turn in turns)}
    else:
        turns = [Turn(r, more={"trace": (r.trace or "") if r.id in fitting else ""}) for r in asked]
    visual = json.loads((data / "train_visual_tokens.json").read_text())
    checks.prompts([(r, "") for r in asked], visual, words, spec["instruction"], spec["max_prompt_length"])
    generated = spec["within_step"].get("rollouts")
    writers.verl(
        out / "rl" / "train.parquet",
        turns,
        data,
        spec["instruction"],
        spec["prefix_rollouts"],
        rollouts=generated,
    )
    rounds.validation(spec, data, words, out / "rl" / "validation.parquet")
    (out / "order.json").write_text(json.dumps([r.id for r in asked]) + "\n")
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    return {"rl_rows": len(asked), **told}


def _fitting(asked: Sequence[Record], room: int, words: Any) -> tuple[set[str], dict[str, int]]:
    """Ids whose trace, with its end of turn, is no longer than a response may be; the others take RL alone. Raises UserError
    where there is none."""
    ends = {r.id: len(words.encode(r.trace, add_special_tokens=False).ids) + 1 for r in asked if r.trace}
    found = {name for name, tokens in ends.items() if tokens <= room}
    if not found:
        why = f"all {len(ends)} are longer than lengths.rl={room} tokens" if ends else "no record has one"
        raise UserError(
            f"recipe.granularity=step needs traces, and {why}: add 'trace' to data.train, or raise lengths.rl"
        )
    missing = len({r.id for r in asked}) - len(ends)
    return found, {"traces": len(found), "traces_missing": missing, "traces_too_long": len(ends) - len(found)}


def _begun(asked: Sequence[Record], told: Mapping[str, Any], zero: Set[str], words: Any, batch: int) -> list[Turn]:
    """RL's rows, those of ``zero`` with the prefix of their step."""
    steps, made = len(asked) // batch, list[Turn]()
    for place, record in enumerate(asked):
        share = prefix_share(told["schedule"], place // batch, steps)
        given = record.id in zero and share > 0
        text = rounds.prefix(record.trace or "", share, told["unit"], words) if given else ""
        made.append(Turn(record, text, {"whole": given and text == record.trace}))
    return made

"""The card of a data set that a model made (``README.md`` in its folder), in the hub's form: what is in it, how it was chosen,
and what it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from synergy.data.records import Record
from synergy.data.rows import RESPONSES, TRACES, Row
from synergy.driver import ledger
from synergy.driver.ledger import Entry

FILE = "README.md"
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's words, by the number of rows that they end at."""
LAB_LICENSE = "cc-by-4.0"
"""Of the lab's handwritten digits."""


def figures(candidates: Sequence[Row], kept: Sequence[Row]) -> dict[str, Any]:
    """Counts of questions and rows, questions by right responses (before and after), lengths in tokens, levels."""
    asked = [row for row in candidates if row.origin == RESPONSES]
    counts = {row.id: row.passes or 0 for row in asked}
    left = {row.id for row in kept}
    runs = max((row.runs for row in asked), default=0)
    levels = {row.id: row.level for row in candidates}
    return {
        "questions": len(counts),
        "responses": len(asked),
        "right_responses": sum(row.correct for row in asked),
        "kept_questions": len(left),
        "kept_rows": len(kept),
        "traces": sum(row.origin == TRACES for row in kept),
        "questions_by_passes": {n: sum(found == n for found in counts.values()) for n in range(runs + 1)},
        "kept_by_passes": {n: sum(counts.get(name) == n for name in left) for n in range(runs + 1)},
        "questions_by_level": _by_level(levels.values()),
        "kept_by_level": _by_level(levels[name] for name in left),
        "tokens_right": _spread([row.tokens for row in asked if row.correct]),
        "tokens_kept": _spread([row.tokens for row in kept if row.origin == RESPONSES]),
    }


def _by_level(levels: Any) -> dict[str, int]:
    found = Counter("none" if level is None else str(level) for level in levels)
    return dict(sorted(found.items()))


def _spread(tokens: Sequence[int]) -> dict[str, float]:
    if not tokens:
        return {}
    return {"least": min(tokens), "median": median(tokens), "mean": round(mean(tokens), 1), "most": max(tokens)}


def provenance(responses: Path) -> list[Entry]:
    """The finished stages behind a sample stage's file, from the ledger of its run directory, the newest last; none where that
    is gone."""
    root = responses.absolute().parents[3] if len(responses.absolute().parents) > 3 else responses.parent
    entries = ledger.read(root / "ledger.jsonl")
    end = [entry for entry in entries.values() if root / entry.output == responses.absolute().parent]
    found: dict[str, Entry] = {}
    while end:
        entry = end.pop()
        found[entry.key] = entry
        inputs = entry.identity.get("inputs", {}).values()
        end += [entries[key] for key in inputs if key in entries and key not in found]
    return [entry for key, entry in entries.items() if key in found]


def text(
    spec: Mapping[str, Any],
    told: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    made: Sequence[Entry],
    splits: Mapping[str, Sequence[Record]],
) -> str:
    """The card. spec: of the ``distill`` part; told: ``figures``; steps: the selection's report."""
    from synergy.driver import card  # and with it the driver: only here

    license_ = spec.get("license") or (LAB_LICENSE if _source(made) == "lab" else None)
    files = {"train": "train.jsonl", "validation": "val.jsonl"}
    front = {
        **({"license": license_} if license_ else {}),
        "pretty_name": f"Self-distilled reasoning traces, {told['kept_questions']} questions",
        "task_categories": ["image-text-to-text" if any(r.images for r in splits["train"]) else "text-generation"],
        "tags": ["synergy", "self-distillation", "reasoning", "chain-of-thought", "arxiv:2507.07562"],
        "size_categories": [next((word for end, word in SIZES if told["kept_rows"] < end), "n>1M")],
        "configs": [
            {"config_name": "default", "data_files": [{"split": name, "path": files[name]} for name in splits]}
        ],
    }
    sections = [
        "# Self-distilled reasoning traces",
        f"{told['kept_rows']} rows of {told['kept_questions']} questions. A model answered {told['questions']} questions, "
        f"{told['responses']} responses in all, of which {told['right_responses']} had a right answer by {_judge(made)}. "
        "What the steps below keep is the data set, made as Eureka-Distill was in "
        "[The Synergy Dilemma of Long-CoT SFT and RL](https://arxiv.org/abs/2507.07562). It is model output: a right answer "
        "does not make the reasoning before it right.",
        "## Files\n\n"
        "`train.jsonl`: one JSON object a row, with `id`, `question`, `answer`, `images` (paths in this folder), `choices`, "
        "`trace` (the response), and `level` and `passes` (of 16 runs of the base model) where they are known. Further rows of "
        "a question have `#` and the response's number after its id.\n\n"
        + (
            f"`val.jsonl`: {len(splits['validation'])} rows of the validation split, as they came; their traces are not this "
            "model's.\n\n"
            if "validation" in splits
            else ""
        )
        + "`selection.json`, `dropped.jsonl`: what each step kept, and why each other response went.",
        "## Licence",
        f"{license_}"
        if license_
        else "Not stated. Add `license:` at the head of this file before you share it; mind the "
        "licences of the questions, the images and the model.",
        "## Selection",
        _table(
            ["step", "rows before", "rows after", "questions after", "what went, and why"],
            [[_step(s), *s["rows"], s["questions"][1], _reasons(s["dropped"])] for s in steps],
        ),
        "## Questions by right responses",
        _table(
            ["right responses", "questions asked", "kept"],
            [[n, count, told["kept_by_passes"][n]] for n, count in told["questions_by_passes"].items()],
        ),
        "## Questions by difficulty level",
        _table(
            ["level", "questions asked", "kept"],
            [[n, count, told["kept_by_level"].get(n, 0)] for n, count in told["questions_by_level"].items()],
        ),
        "## Length of responses, in tokens",
        _table(
            ["", "least", "median", "mean", "most"],
            [[word, *told[name].values()] for word, name in (("right", "tokens_right"), ("kept", "tokens_kept"))],
        ),
        "## Made by",
        f"Synergy {card.source()}.",
        *(_stage(entry) for entry in made),
        *([] if made else ["Its stages are not recorded where it was made."]),
    ]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n" + "\n\n".join(sections) + "\n"


def _judge(made: Sequence[Entry]) -> str:
    own = next((entry.identity["own_reward"] for entry in made if "own_reward" in entry.identity), None)
    return (
        f"a reward function of its maker's ({own['name']}, SHA-256 {own['source']})"
        if own
        else "Synergy's answer checker"
    )


def _source(made: Sequence[Entry]) -> Any:
    return next((e.identity["settings"].get("source") for e in made if e.kind == "prepare"), None)


def _stage(entry: Entry) -> str:
    parts = {"key": entry.key, **{name: entry.identity.get(name) for name in ("settings", "inputs", "packages")}}
    return (
        f"### {entry.name} ({entry.kind})\n\n```yaml\n{yaml.safe_dump(parts, sort_keys=False, allow_unicode=True)}```"
    )


def _step(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in told["step"].items())


def _reasons(dropped: Mapping[str, int]) -> str:
    found = list(dropped.items())
    more = [f"{sum(n for _, n in found[5:])} for others"] if found[5:] else []
    return "; ".join([*(f"{n} {why}" for why, n in found[:5]), *more]) or "nothing"


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    cells = [
        [str(cell).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in row] for row in (head, *rows)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])

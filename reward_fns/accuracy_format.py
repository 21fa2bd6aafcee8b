"""verl's reward: 0.9 for a correct answer and 0.1 for the demanded format (the weights of the paper).

verl loads this file by reward.custom_reward_function.path and calls `compute_score` once per rollout, from threads.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from reward_fns.answer import Verdict, judge
from reward_fns.extraction import boxes


def well_formed(response: str) -> bool:
    r"""Exactly one <think>...</think>, at the start, then text with exactly one \boxed{} that is not empty.

    The paper states no format check; this is ours.
    """
    if response.count("<think>") != 1 or response.count("</think>") != 1:
        return False
    thought, _, rest = response.partition("</think>")
    found = boxes(rest)
    return thought.lstrip().startswith("<think>") and len(found) == 1 and bool(found[0].content)


def _choices(value: Any) -> Mapping[str, str] | None:
    """Choices as letter to text: a mapping, its JSON text, or nothing. Parquet gives None for letters a row lacks."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if not value:
        return None
    return {str(letter): str(text) for letter, text in value.items() if text is not None} or None


def log_rollout(entry: Mapping[str, Any]) -> None:
    """Append one JSON line to this process's file in the folder $SYNERGY_ROLLOUTS, if that is set.

    One write to a file opened for appending, so that threads do not mix lines and a kill loses at most the last one.
    """
    folder = os.environ.get("SYNERGY_ROLLOUTS")
    if not folder:
        return
    data = (json.dumps(dict(entry), ensure_ascii=False) + "\n").encode()
    descriptor = os.open(os.path.join(folder, f"{os.getpid()}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    accuracy_weight: float = 0.9,
    format_weight: float = 0.1,
    **_: Any,
) -> dict[str, float]:
    """Reward of one rollout: "score" is what GRPO uses, "acc", "format" (0 or 1) and "length" (characters) its parts.

    extra_info may hold "id", "split", "choices" (letter to text, or that as JSON) and "prefix", the beginning of the
    response that was given to the policy rather than generated: both are judged together; "length" counts what was
    generated.
    """
    info = extra_info or {}
    prefix = str(info.get("prefix") or "")
    response = prefix + solution_str
    verdict: Verdict = judge(response, ground_truth, _choices(info.get("choices")))
    accuracy, form = float(verdict.correct), float(well_formed(response))
    score = accuracy_weight * accuracy + format_weight * form
    result = {"score": score, "acc": accuracy, "format": form, "length": float(len(solution_str))}
    if info.get("split") == "train":
        log_rollout(
            {
                "id": str(info.get("id", "")),
                "acc": accuracy,
                "format": form,
                "score": score,
                "characters": len(solution_str),
                "prefix": len(prefix),
                "step": _number(info.get("global_steps")),
                "answer": verdict.answer,
                "rule": verdict.rule,
                "seconds": round(verdict.seconds, 6),
                "time": round(time.time(), 3),
            }
        )
    return result


def _number(value: Any) -> int | None:
    """verl's step, an int, or numpy's idea of one, or absent."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None

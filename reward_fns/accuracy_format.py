"""verl's reward: 0.9 for a correct answer and 0.1 for the demanded format (the weights of the paper).

verl loads this file by reward.custom_reward_function.path, gives `compute_score` the keys of reward_kwargs beside it, and
calls it once per rollout, from threads.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from reward_fns import length, rollouts
from reward_fns.answer import judge
from reward_fns.choices import read_choices
from reward_fns.extraction import boxes


def think_then_box(response: str) -> bool:
    r"""Exactly one <think>...</think>, at the start, then text with exactly one \boxed{} that is not empty.

    The paper states no format check; this is ours.
    """
    if response.count("<think>") != 1 or response.count("</think>") != 1:
        return False
    thought, _, rest = response.partition("</think>")
    return thought.lstrip().startswith("<think>") and one_box(rest)


def one_box(response: str) -> bool:
    r"""Exactly one \boxed{} that is not empty."""
    found = boxes(response)
    return len(found) == 1 and bool(found[0].content)


FORMATS = {"think_then_box": think_then_box, "one_box": one_box}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    accuracy_weight: float = 0.9,
    format_weight: float = 0.1,
    format_check: str = "think_then_box",
    overlong: Mapping[str, Any] | None = None,
    cosine: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Reward of one rollout: "score" is what GRPO uses, "acc" and "format" (0 or 1) and "length" are its parts.

    extra_info may hold "id", "split", "choices" (letter to text, or that as JSON) and "prefix", the beginning of the
    response that was given to the policy rather than generated: both are judged together; "length" counts what was
    generated, in tokens of `tokenizer` (a tokenizer.json), else in characters.

    overlong {max, buffer, factor}: adds DAPO's penalty. cosine {max, correct, wrong, exceeded}: takes the place of accuracy
    in the score, never in "acc". A row that can't be judged scores 0 with "broken" 1; it never ends the training.
    """
    result = {"score": 0.0, "acc": 0.0, "format": 0.0, "length": 0.0, "broken": 0.0}
    info = extra_info or {}
    answer, rule, seconds, prefix = None, "", 0.0, str(info.get("prefix") or "")
    try:
        tokens = length.count(solution_str, tokenizer)
        if not isinstance(ground_truth, str) or not ground_truth.strip():
            raise ValueError(f"ground truth {ground_truth!r}")
        response = prefix + solution_str
        verdict = judge(response, ground_truth, read_choices(info.get("choices")))
        answer, rule, seconds = verdict.answer, verdict.rule, verdict.seconds
        result |= {
            "acc": float(verdict.correct),
            "format": float(FORMATS[format_check](response)),
            "length": float(tokens),
        }
        right = result["acc"]
        if cosine:
            pairs = (tuple(map(float, cosine["correct"])), tuple(map(float, cosine["wrong"])))
            right = length.cosine_reward(verdict.correct, tokens, int(cosine["max"]), *pairs, float(cosine["exceeded"]))  # type: ignore[arg-type]
        result["score"] = accuracy_weight * right + format_weight * result["format"]
        if overlong:
            factor = float(overlong.get("factor", 1.0))
            result["score"] += length.overlong_penalty(tokens, int(overlong["max"]), int(overlong["buffer"]), factor)
    except Exception as error:  # one bad row must not end hours of training
        result |= {"score": 0.0, "acc": 0.0, "broken": 1.0}
        rule = f"broken: {type(error).__name__} {error}"[:200]
    rollouts.record(result, info, solution_str, prefix, answer=answer, rule=rule, seconds=round(seconds, 6))
    return result


def settings_problem(given: Mapping[str, Any]) -> str | None:
    """What is wrong with reward_kwargs; None if nothing is. Asked before the run: verl passes on whatever stands there."""
    known = {p.name for p in inspect.signature(compute_score).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if unknown := set(given) - known:
        return f"unknown {sorted(unknown)}; known: {sorted(known)}"
    for name in ("accuracy_weight", "format_weight"):
        value = given.get(name, 0.0)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"{name}={value!r} is no number"
    if given.get("format_check", "one_box") not in FORMATS:
        return f"format_check={given['format_check']!r}; one of {', '.join(FORMATS)}"
    return length.problem(given.get("overlong"), given.get("cosine"))

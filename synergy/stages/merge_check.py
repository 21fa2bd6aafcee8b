"""Checks a merged checkpoint against the models that went in: mergekit walks a list of tensor names, and one that the list
lacks is left out without a word (issues 579, 665 and 696 of arcee-ai/mergekit).

linear and task_arithmetic: every value against the closed form. The others: names, shapes, and no tensor left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synergy.driver.checkpoint import Tensor
from synergy.driver.values import ROUNDOFF, SMALLEST, each, side_by_side
from synergy.errors import StageFailed
from synergy.stages.merge import DTYPES

EXACT = ("linear", "task_arithmetic")
OPERATIONS = 8
"""Roundings of a merge in its own dtype, before the one to the dtype of the output."""
SURE = 20.0
"""exp(-20): chance at which random dropping is taken as no excuse for a tensor that did not move."""
Models = Mapping[str, Mapping[str, Tensor]]
"""Role (base, sft, rl) -> published name -> tensor."""


def coefficients(settings: Mapping[str, Any]) -> dict[str, float]:
    """Role -> factor in the linear combination that the method is, or for those with signs and angles is close to."""
    ratio, scale = settings["ratio"], settings["parameters"].get("lambda", 1.0)
    return {"base": 1 - scale, "sft": scale * ratio, "rl": scale * (1 - ratio)}


def verify(made: Mapping[str, Tensor], models: Models, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a good merge. Raises StageFailed naming the tensors that are missing, of another shape, wrong or skipped."""
    base = models["base"]
    missing, extra = sorted(set(base) - set(made)), sorted(set(made) - set(base))
    if missing or extra:
        raise StageFailed(
            f"mergekit left out {len(missing)} tensors (first: {missing[:3]}) and made {len(extra)} that the base lacks "
            f"(first: {extra[:3]}); its list of Qwen2.5-VL's tensors does not fit this model"
        )
    check = _exact if settings["method"] in EXACT else _moved

    def one(tensor: Tensor) -> float:
        if tensor.shape != base[tensor.name].shape:
            raise StageFailed(
                f"mergekit made {tensor.name} of shape {tensor.shape}, the base has {base[tensor.name].shape}"
            )
        return check(tensor, {role: tensors[tensor.name] for role, tensors in models.items()}, settings)

    worst = max(each(one, made.values()).values(), default=0.0)
    figures: dict[str, Any] = {"verified": len(made)}
    return figures | ({"largest_error": worst} if settings["method"] in EXACT else {})


def _exact(made: Tensor, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """Largest absolute difference to the closed form.

    Tolerance per element: half a unit in the last place of the output's dtype, and OPERATIONS roundings of the largest value
    involved in the dtype mergekit computes in.
    """
    factors, worst = coefficients(settings), 0.0
    inner, outer = ROUNDOFF[DTYPES[settings["dtype"]]], ROUNDOFF[made.dtype]
    tiny = SMALLEST[made.dtype] + OPERATIONS * SMALLEST[DTYPES[settings["dtype"]]]
    size = max(1.0, sum(abs(factor) for factor in factors.values()))
    used = {role: tensor for role, tensor in inputs.items() if factors[role] or settings["method"] != "linear"}
    for out, *values in side_by_side([made, *used.values()]):
        wanted, largest = np.zeros_like(out), np.zeros_like(out)
        for role, value in zip(used, values, strict=True):
            wanted += factors[role] * value
            np.maximum(largest, np.abs(value), out=largest)
        allowed = OPERATIONS * inner * size * largest + tiny
        allowed += outer * (1 + OPERATIONS * inner) * np.abs(wanted)
        error = np.abs(out - wanted)
        wrong = ~(error <= allowed)  # NaN is wrong too
        if wrong.any():
            first = int(np.argmax(wrong))
            raise StageFailed(
                f"mergekit's {made.name} is not {settings['method']} of its parents: {int(wrong.sum())} of {out.size} values "
                f"looked at, for one {out[first]:.9g} where {wanted[first]:.9g} is right; was the tensor skipped?"
            )
        worst = max(worst, float(error.max(initial=0.0)))
    return worst


def _moved(made: Tensor, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """A tensor in which the parents differ must not be the base's, nor for slerp a parent's, where neither rounding nor
    dropping is an excuse; what is the same in all models stays."""
    factors = coefficients(settings)
    inner, outer = ROUNDOFF[DTYPES[settings["dtype"]]], ROUNDOFF[made.dtype]
    suspects = list(inputs) if settings["method"] == "slerp" else ["base"]
    same, far = dict.fromkeys(suspects, True), dict.fromkeys(suspects, 0)
    top = dict.fromkeys(("sft", "rl"), (0.0, 0.0))
    changed, all_alike = False, True
    for out, *found in side_by_side([made, *inputs.values()]):
        values = dict(zip(inputs, found, strict=True))
        likely = sum(factors[role] * value for role, value in values.items())
        rounding = {role: outer * np.abs(value) + SMALLEST[made.dtype] for role, value in values.items()}
        for role in suspects:
            far[role] += int((np.abs(likely - values[role]) > 4 * rounding[role]).sum())  # two units in the last place
            same[role] &= bool((np.abs(out - values[role]) <= rounding[role]).all())
        for role in top:
            top[role] = max(top[role], _largest(np.abs(values[role] - values["base"]), rounding["base"]))
        alike = (values["sft"] == values["rl"]) & (values["sft"] == values["base"])
        allowed = rounding["base"] + OPERATIONS * (inner * np.abs(values["base"]) + SMALLEST[DTYPES[settings["dtype"]]])
        changed |= bool((alike & ~(np.abs(out - values["base"]) <= allowed)).any())
        all_alike &= bool(alike.all())
    if changed and (all_alike or settings["method"] != "slerp"):  # slerp turns a tensor as a whole
        raise StageFailed(f"mergekit changed {made.name} where base and parents agree")
    for role in suspects:
        if settings["method"] == "ties":
            # What TIES keeps of a parent begins with its largest delta; a vote against it is won by a larger one.
            moved = any(factors[parent] * delta > 4 * rounded for parent, (delta, rounded) in top.items())
        else:
            density = settings["parameters"].get("density", 1.0)
            moved = far[role] > 0 if density >= 1 else -far[role] * math.log1p(-density) > SURE
        if same[role] and moved:
            raise StageFailed(
                f"mergekit left {made.name} as it is in the {role} model, though the parents differ; it was skipped"
            )
    return 0.0


def _largest(deltas: np.ndarray, rounding: np.ndarray) -> tuple[float, float]:
    """The largest delta and, of the places that have it, the largest rounding."""
    delta = float(deltas.max(initial=0.0))
    return delta, float(rounding[deltas == delta].max(initial=0.0))

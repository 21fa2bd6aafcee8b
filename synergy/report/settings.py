"""What decided a report's numbers, kept in its report.json so that two reports can say in what they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synergy.driver.plan import Plan
from synergy.report.results import BASE, Model

Settings = dict[str, list[str]]
"""Setting -> its distinct values, in words: of several models, or of several jobs."""
ASKED = ("runs", "sampling", "instruction")


def model(one: Model) -> dict[str, Any]:
    """How a model was asked, as report.json has it."""
    asked = {name: one.settings[name] for name in ASKED}
    return {"model": one.name, "checkpoint": one.checkpoint, "stage": one.step.stage.name, **asked}


def of_plan(todo: Plan, models: Sequence[Model]) -> Settings:
    """From finished stages: how models were asked, of what, from which base; versions; and every stage's own settings, those
    that are part of its identity."""
    found = _asked([one.settings for one in models])
    for one in models:
        identity = one.step.entry.identity if one.step.entry else {}
        if one.checkpoint == BASE:
            _add(found, "base checkpoint", identity.get("inputs", {}).get("model", "")[:12])
        _add(found, "benchmark files", identity.get("inputs", {}).get("benchmarks", "")[:12])
        _add(found, "answer checker", identity.get("reward", "")[:12])
    for step in todo.steps:
        identity = step.entry.identity if step.entry else {}
        for name, version in identity.get("packages", {}).items():
            _add(found, f"version of {name}", version)
        if step.stage.kind != "evaluate":
            for name, value in _flat(identity.get("settings", {})):
                _add(found, f"{step.stage.name}: {name}", value)
    return found


def of_document(told: Mapping[str, Any]) -> Settings:
    """From a report.json; one that is older than its ``settings`` tells less."""
    if "settings" in told:
        return {str(name): [str(value) for value in values] for name, values in told["settings"].items()}
    found = _asked(told.get("models", []))
    for stage in told.get("stages", []) if isinstance(told.get("stages"), list) else []:
        for name, version in stage.get("packages", {}).items():
            _add(found, f"version of {name}", version)
    return found


def _asked(models: Sequence[Mapping[str, Any]]) -> Settings:
    found: Settings = {}
    for one in models:
        _add(found, "runs", one["runs"])
        _add(found, "instruction", one["instruction"] or "none")
        for name, value in one["sampling"].items():
            _add(found, f"sampling: {name}", value)
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _add(found: Settings, name: str, value: Any) -> None:
    values = found.setdefault(name, [])
    if value != "" and str(value) not in values:
        values.append(str(value))

"""Change a module of a framework right after it was imported, whoever imports it and when.

For plug-ins that verl loads while it is itself being imported (VERL_USE_EXTERNAL_MODULES), when its own modules are not there
yet: importing them would go in a circle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


class Finder:
    """Meta path finder for one module: it is loaded as ever, then given to each of `changes`."""

    def __init__(self, name: str) -> None:
        self.name, self.changes = name, list[Callable[[Any], None]]()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != self.name:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        if spec is None:
            return None  # it is not there, as the next finders will say
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            for change in self.changes:
                change(module)

        spec.loader.exec_module = exec_module
        return spec


_finders: dict[str, Finder] = {}


def after_import(name: str, change: Callable[[Any], None]) -> None:
    """Have `change` called with the module `name`: at once if it is imported already, else as soon as it is, after those that
    asked before."""
    if module := sys.modules.get(name):
        change(module)
        return
    if name not in _finders:
        _finders[name] = Finder(name)
        sys.meta_path.insert(0, _finders[name])
    _finders[name].changes.append(change)

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
    """Meta path finder for one module: it is loaded as ever, then given to `change`."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self.name, self.change = name, change

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != self.name:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


def after_import(name: str, change: Callable[[Any], None]) -> None:
    """Have `change` called with the module `name`: at once if it is imported already, else as soon as it is."""
    if module := sys.modules.get(name):
        change(module)
    else:
        sys.meta_path.insert(0, Finder(name, change))

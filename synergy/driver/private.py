"""Secrets stay in the environment: a config is written down (command.sh, native configs, ledger, cards), so it holds none.

What the frameworks need of the environment (HF_TOKEN, WANDB_API_KEY, the judge's key) they inherit from the driver's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from synergy.config import Config
from synergy.errors import UserError

NAME = re.compile(
    r"(^|_)(API_?KEYS?|ACCESS_KEY|SECRETS?|SECRET_KEY|PRIVATE_KEY|(HUB|HF|AUTH|API|ACCESS|BEARER|REFRESH|SESSION)_TOKEN|PASSWORD|PASSWD|"
    r"PASSPHRASE|CREDENTIALS?)$",
    re.IGNORECASE,
)
"""Of a setting or a variable that holds a secret."""
VARIABLE = re.compile(rf"{NAME.pattern}|_(TOKEN|KEY)$", re.IGNORECASE)
"""The same of environment variables, whose names say less."""
SHAPES = (
    (r"hf_[A-Za-z0-9]", 20, 30),
    (r"gh[pousr]_[A-Za-z0-9]", 20, 36),
    (r"github_pat_[A-Za-z0-9_]", 20, 20),
    (r"AKIA[0-9A-Z]", 16, 16),
    (r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]", 20, 32),
    (r"xox[abprs]-[A-Za-z0-9-]", 10, 20),
    (r"AIza[A-Za-z0-9_-]", 30, 30),
)
"""Tokens and keys as the hub, code hosts, clouds and model vendors write them: how they begin, with the letter that repeats,
and how often it does at least in a setting, and in the texts of a data set, where prose and chance make shorter ones."""


def shapes(texts: bool) -> str:
    """A regular expression of them all, and of a private key."""
    found = [f"{start}{{{in_texts if texts else in_settings},}}" for start, in_settings, in_texts in SHAPES]
    return "|".join([*found, "-----BEGIN [A-Z ]{0,30}PRIVATE KEY"])


VALUE = re.compile(rf"(?<!\w)({shapes(texts=False)})|\w+://[^/\s:@]+:[^/\s@]+@")
"""One of them, or a password in an address."""
OPTION = re.compile(r"--?(api-key|token|hf-token|password)(=|$)")
"""Of a program's command line."""
SHORTEST = 8
"""Characters of an environment variable's value that is looked for in the config: shorter ones are words."""


def check(cfg: Config) -> None:
    """Raises UserError, without the value, for a config that holds a secret."""
    mine = {
        name: value
        for name, value in os.environ.items()
        if VARIABLE.search(name) and len(value) >= SHORTEST and not value.isdecimal()
    }
    for path, name, value in _leaves(asdict(cfg)):
        pattern = VARIABLE if path.rpartition(".")[0].endswith(("env", "env_vars")) else NAME
        if name == "key_env":
            continue
        copied = next((variable for variable, secret in mine.items() if secret in value), None)
        if copied is not None:
            raise _error(path, f"holds the value of the environment variable {copied}", copied)
        if pattern.search(name) and value.strip():
            raise _error(path, "is a secret by its name", name.upper())
        if VALUE.search(value) or OPTION.match(value):
            raise _error(path, "looks like a secret", "a variable")


def _error(path: str, what: str, variable: str) -> UserError:
    return UserError(
        f"{path} {what}, and the config is written to files (command.sh, native configs, ledger): take it out and export "
        f"{variable} in the environment instead, which every stage inherits and nothing writes down"
    )


def _leaves(tree: Any, at: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, last name, text) of all strings in nested mappings and lists; a key counts as a name and as a text."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            path = f"{at}.{key}" if at else str(key)
            yield from _leaves(value, path, str(key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{at}.{index}", name)
    elif isinstance(tree, str):
        yield at, name, tree

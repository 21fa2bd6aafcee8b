"""From the words of the command line to configs: Hydra composes one per job, and a sweep (``-m``) has several.

Plain overrides are composed through Hydra's compose interface, each job once. ``hydra.main`` composes every job of a sweep
twice and the sweep itself twice more, an eighth of a second each; it does the rest: its own flags (--help, --cfg, ...) and
overrides of Hydra's own settings.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from synergy import paths, ranges
from synergy.config import Config
from synergy.errors import StageFailed, UserError

RECIPES = str(paths.ROOT / "recipes")
MANY, ONE = {"-m", "--multirun"}, {"-r", "--run"}


@dataclass(frozen=True)
class Task:
    """One job of the command line. name: its recipe and what else sets it apart from the others; recipe: the name without the
    seed, so that jobs which differ by seed alone share it; words: its overrides; number, of: its place among the jobs."""

    name: str
    recipe: str
    words: tuple[str, ...]
    cfg: Config
    number: int = 1
    of: int = 1

    @contextmanager
    def telling(self, more: str = "") -> Iterator[None]:
        """Errors from within say which job of a sweep they are about. more: what to add in a sweep."""
        try:
            yield
        except (UserError, StageFailed) as error:
            if self.of > 1:
                error.args = (f"job {self.number} of {self.of} ({self.name}): {error}{more}",)
            raise


def tasks(argv: Sequence[str]) -> list[Task]:
    """The jobs that a command line asks for, in order; none if it asks for something else, which Hydra then has done.

    Raises UserError, HydraException or OmegaConfBaseException for what does not compose, or has a value that can't be.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    plain = all(word in MANY | ONE or not (word.startswith("-") or "hydra" in word) for word in argv)
    try:
        composed = _compose(argv) if plain else _main()
    except HydraException as error:
        if told := _plainer(error):
            raise UserError(told) from error
        raise
    labels = _labels([words for words, _ in composed])
    made = [
        Task(*label, tuple(words), cast(Config, OmegaConf.to_object(cfg)), number, len(composed))
        for number, (label, (words, cfg)) in enumerate(zip(labels, composed, strict=True), 1)
    ]
    for task in made:
        with task.telling():
            ranges.check(task.cfg)
    return made


def _plainer(error: HydraException) -> str | None:
    """Hydra's word for a key that is not there ("To append to your config use +key") and for a value that its grammar lacks, in
    terms of this config; None for all else."""
    key = str(getattr(error.__cause__, "full_key", ""))
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if value.startswith("~"):
            return f"{error.override}: Hydra keeps '~' for itself; write {key}=$HOME{value[1:]}"
        if not value or value[0] in "[{" or set(value) & set("'\"\\$"):
            return None
        quoted = f'{key}="{value}"'
        return f"{error.override}: Hydra reads this value in quotes only; write {shlex.quote(quoted)}"
    if not isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return None
    if dataclasses.is_dataclass(error.__cause__.object_type) or key.startswith("recipe."):
        return ranges.unknown(key, [str(name) for name in error.__cause__.parent_node or ()])
    if key.startswith("rl.verl."):
        return (
            f"{key} is not among the recipe's keys of verl; write +{key} for another that verl's YAML has, and "
            f"+{key.replace('verl', 'verl_add', 1)} for one that verl reads but does not list"
        )
    return None


def _compose(argv: Sequence[str]) -> list[tuple[list[str], Any]]:
    """(overrides, config) of each job. A sweep's overrides are multiplied by Hydra's own sweeper."""
    words = [word for word in argv if word not in MANY | ONE]
    with hydra.initialize_config_dir(RECIPES, job_name="synergy", version_base="1.3"):
        inner = GlobalHydra.instance().hydra
        assert inner is not None
        jobs = [words]
        if MANY & set(argv):
            parsed = OverridesParser.create(config_loader=inner.config_loader).parse_overrides(words)
            (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        composed = [(job, _config(inner, job)) for job in jobs]
    for _, cfg in composed:
        with open_dict(cfg):
            del cfg["hydra"]
    return composed


def _config(inner: Any, job: list[str]) -> Any:
    try:
        return inner.compose_config("config", job, RunMode.RUN)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra asserts what it has not checked, such as a key of no name
        raise UserError(
            f"these words can't be put together ({type(error).__name__} {str(error)[:200]}): {shlex.join(job)[:500]}; each is "
            "key=value, +key=value for a new key, or ~key; see synergy run --help"
        ) from error


def _main() -> list[tuple[list[str], Any]]:
    """The same through ``hydra.main``, which reads the command line itself."""
    found: list[tuple[list[str], Any]] = []

    def task(cfg: Any) -> None:
        found.append((list(HydraConfig.get().overrides.task), cfg))

    hydra.main(version_base="1.3", config_path=RECIPES, config_name="config")(task)()
    return found


def _labels(jobs: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """(name, recipe) of each job: the choice of recipe, and the overrides in which the jobs differ."""
    common = set.intersection(*map(set, jobs)) if jobs else set()
    labels = []
    for words in jobs:
        recipe = [word.split("=", 1)[1] for word in words if word.startswith("recipe=")]
        other = [word.lstrip("+") for word in words if word not in common and not word.startswith("recipe=")]
        seedless = [word for word in other if not word.startswith("seed=")]
        labels.append((" ".join(recipe + other), " ".join(recipe + seedless)))
    return labels

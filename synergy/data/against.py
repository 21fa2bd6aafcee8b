"""What training questions are held against: the files of data.against, or the benchmarks of the config that are at hand."""

from __future__ import annotations

from pathlib import Path

from synergy import machine
from synergy.config import Benchmark, Config
from synergy.data import tagged
from synergy.data.part import Part
from synergy.data.readers import Source
from synergy.driver import externals, identity
from synergy.errors import UserError

FOLDER = "benchmarks"


def sources(cfg: Config, home: Path) -> tuple[list[Source], list[str]]:
    """The sources, and of each benchmark that can't be had here the reason. Raises UserError for a file of data.against that is
    none."""
    if cfg.data.against is not None:
        return [_file(name, f"data.against: {name}") for name in cfg.data.against], []
    found, missing = [], []
    for bench in cfg.evaluate.benchmarks:
        try:
            found += _of_benchmark(cfg, bench, home)
        except UserError as error:
            missing.append(f"{bench.name} ({error})")
    return found, missing


def unread(held: Part) -> str | None:
    """Rows of one of them that no question can be held against."""
    bad = {"image", "unsafe"}
    rows = [head.id is None or not bad.isdisjoint(check for check, _ in head.problems) for head in held.heads()]
    if not any(rows):
        return None
    where = f"{sum(rows)} of the {len(rows)} rows of {held.source.name} (number {rows.index(True) + 1} first)"
    return f"{where}: each needs a question, an answer, and its images where the file says"


def _of_benchmark(cfg: Config, bench: Benchmark, home: Path) -> list[Source]:
    if bench.tagged:
        return [_table(bench, externals.tagged(bench, bench.tagged, home / "digests.json", fetch=False), home)]
    folder = cfg.evaluate.source or cfg.data.source
    if folder in (None, externals.LAB) or not bench.records:
        return []  # the lab draws its benchmarks anew for every run
    return [_file(str(Path(str(folder)) / bench.records), f"benchmark {bench.name}: {bench.records}", bench.name)]


def _table(bench: Benchmark, place: externals.External, home: Path) -> Source:
    """A published benchmark, as the table that VLMEvalKit gets. Raises UserError for one that is not in the hub's cache."""
    if not place.path.is_dir():
        raise UserError("not in the hub's cache yet")
    key = identity.sha(identity.canonical([place.digest, bench.kind, bench.split, bench.question]))[:12]
    folder = home / FOLDER / f"{bench.name}-{key}"
    if not folder.exists():
        given = tagged.Source(bench.name, place.path, bench.kind, bench.split, question=bench.question, counts={})
        with machine.folder_aside(folder, f"benchmark {bench.name}") as aside:
            tagged.write(given, aside / f"{bench.name}.tsv")
    return _file(str(folder / f"{bench.name}.tsv"), f"benchmark {bench.name}")


def _file(name: str, setting: str, called: str = "") -> Source:
    file = Path(name).expanduser().resolve()
    if file.suffix not in (".tsv", ".jsonl") or not file.is_file():
        raise UserError(f"{setting} is no .tsv of a benchmark, nor a .jsonl of records")
    return Source(called or file.stem, file, "vlmevalkit" if file.suffix == ".tsv" else "columns")

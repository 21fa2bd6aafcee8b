"""``python -m synergy.data prepare data.sources=[…]``: published data sets to one checked folder that every framework reads."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from synergy import cli, machine
from synergy.compose import Task
from synergy.config import Config
from synergy.data import against, assemble, ids, part, portion, problems, sealed
from synergy.data.crew import Crew
from synergy.data.overlap import Held
from synergy.data.part import Looks, Part, Tell
from synergy.data.portion import Job, Portion, Rules
from synergy.data.readers import Source
from synergy.data.readers.shapes import SHAPES
from synergy.data.told import Told
from synergy.driver import externals, identity, retention, scan
from synergy.errors import UserError

VERSION = 2
"""Of what is written: raised by whoever changes the files of a framework."""
DONE = "prepared.json"
INTO = ("train", "validation", "benchmark")
HELP = """usage: synergy data prepare data.sources=[{{name: N, path: P, …}}, …] [scale=…] [any other key]

Reads data sets as they were published, checks every row and image, and writes one folder (below run.dir/data):
  records/       train.jsonl, val.jsonl and images: give this folder to any recipe as data.source
  llamafactory/  ShareGPT JSON and dataset_info.json (media_dir is records/)
  verl/          parquet with prompt, images, reward_model, data_source, extra_info: several files a source, so give
                 data.train_files='FOLDER/verl/train-*.parquet'
  vlmevalkit/    a TSV per source with into=benchmark
  report/        report.html: what was found, with examples and token lengths; problems.jsonl lists all of it

  synergy data prepare scale=qwen2_5_vl_7b model.revision=COMMIT \\
    'data.sources=[{{name: distill, path: JierunChen/Eureka-Distill, revision: COMMIT, layout: eureka_distill}},
                   {{name: s1, path: /data/s1K-1.1, layout: s1.1}}]' data.checks.answer=drop

Of a source: path is a file (parquet, JSONL, JSON, CSV, TSV), a folder, or a hub name with its revision. split and subset say
which of its files, media where images lie. columns maps fields of the record to columns: '{{question: problem, answer: gold}}'.
into is train, validation or benchmark; layout one of {layouts}.

A source that has been read is not read again as long as it stays the same, and its output is linked, not written again; so
only a new source costs time.

Checks, each with data.checks.NAME=fail (the default), drop or repair:
{checks}
Tokens are those of model.path; limits are sft.config.cutoff_len and rl.verl.data.max_prompt_length; training questions are held
against the files of data.against (.tsv or .jsonl; by default evaluate.benchmarks), and against what goes into benchmark and
validation. The same words and the same image are an overlap; an image alone is one with a benchmark.
"""


def main() -> int:
    """The verb ``data``: its word, then overrides of the config."""
    words = sys.argv[1:]
    if words and words[0] not in ("prepare", "-h", "--help"):
        return cli.tell(f"no such verb: data {words[0]}; there is synergy data prepare", 2)
    if not words or {"-h", "--help"} & set(words):
        checks = "".join(f"  {name:<14}{what}\n" for name, what in problems.CHECKS.items())
        print(HELP.format(layouts=", ".join(SHAPES), checks=checks))
        return 0 if words else 2
    sys.argv = [f"{sys.argv[0]} prepare", *words[1:]]
    if not any(word.startswith("recipe=") for word in words):
        sys.argv.insert(1, "recipe=sft")  # which recipe uses the data makes no difference to them
    return cli.with_config(_action)


def _action(tasks: list[Task]) -> None:
    for task in tasks:
        with task.telling():
            place = prepare(task.cfg)
            print(f"report: {place / 'report' / 'report.html'}\ntrain on it with data.source={place / 'records'}")


def prepare(cfg: Config) -> Path:
    """The prepared folder of a config. Raises UserError for what the policies don't let through, and for files that can't be
    read; then nothing is written but the report on it."""
    policies = problems.policies(cfg.data.checks)
    if not cfg.data.sources:
        raise UserError("data.sources is empty: list what to prepare; synergy data prepare --help shows how")
    home = Path(cfg.run.dir) / retention.DATA
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / ".lock", timeout=0):
            return _prepare(cfg, policies, home)
    except Timeout as error:
        raise UserError(f"another process prepares data in {home}; wait for it, or set run.dir") from error


def _prepare(cfg: Config, policies: dict[str, str], home: Path) -> Path:
    began = time.monotonic()
    model = externals.model(cfg.model.path, cfg.model.revision, "model", home / part.DIGESTS, True).path
    limits = (cfg.sft.config.get("cutoff_len"), cfg.rl.verl["data"].get("max_prompt_length"))
    rules = Rules(policies, cfg.data.instruction, *limits)
    sources = _sources(cfg, home)
    bench, missing = against.sources(cfg, home)
    hashed = bool(bench) or any(source.into != "train" for source in sources)
    looks = Looks(home, model, rules.instruction, hashed)
    seen = Looks(home, model, None, hashed=True, images=False)
    with Crew(cfg.data.workers or len(os.sched_getaffinity(0))) as crew, _telling() as tell:
        parts = [part.of_source(source, looks, crew, tell) for source in sources]
        held = [part.of_source(source, seen, crew, tell) for source in bench]
        for one in parts:
            print(f"{one.source.name}: {'read' if one.new else 'reused'}", flush=True)
        if bench or missing:
            print(f"held against {', '.join(one.source.name for one in held) or 'nothing'}", flush=True)
        for reason in (*missing, *filter(None, map(against.unread, held))):
            print(f"not held against {reason}", flush=True)
        place = home / _key(parts, held, rules)
        if (place / DONE).exists():
            wrong = sealed.broken(place, home / part.DIGESTS)
            if wrong is None:
                print(f"reused: {place}")
                return place
            print(f"made anew, since {place} was changed: {wrong}", flush=True)
        jobs = [
            Job(one, rules, names, _held(one, parts, held), place)
            for one, names in zip(parts, ids.over(parts, policies), strict=True)
        ]
        portions = [portion.of_part(job, home, crew, tell) for job in jobs]
        return _publish(cfg, portions, held, rules, place, began)


def _key(parts: list[Part], held: list[Part], rules: Rules) -> str:
    made_from = {
        "parts": [[one.key, one.source.into] for one in parts],
        "against": [one.key for one in held],
        "rules": asdict(rules),
        "version": VERSION,
    }
    return identity.sha(identity.canonical(made_from))[:12]


def _held(one: Part, parts: list[Part], bench: list[Part]) -> tuple[Held, ...]:
    """What the rows of a part are held against: benchmarks, and training questions the validation split too."""
    if one.source.into == "benchmark":
        return ()
    others = [other for other in parts if other.source.into == "benchmark"]
    found = [Held(other.source.name, other.key, other.folder, images=True) for other in (*bench, *others)]
    if one.source.into == "train":
        splits = [other for other in parts if other.source.into == "validation"]
        found += [Held(other.source.name, other.key, other.folder, images=False) for other in splits]
    return tuple(found)


def _publish(cfg: Config, portions: list[Portion], held: list[Part], rules: Rules, place: Path, began: float) -> Path:
    """Fills a folder aside and renames it once it is whole. Raises UserError for what a policy does not let through."""
    told, parts, home = Told(), [one.part for one in portions], place.parent
    for one in portions:
        told.add(one.told)
    refused = place.with_name(f"{place.name}-refused")
    shutil.rmtree(refused, ignore_errors=True)
    if told.fails or not any(told.kept.values()):
        with machine.folder_aside(refused, "the report") as aside:
            _report(cfg, portions, told, rules, aside, began)
        for one in portions:
            if one.told.fails:
                shutil.rmtree(one.folder)
        raise UserError(_refusal(told, refused / "report" / "report.html"))
    with machine.folder_aside(place, "what was prepared") as aside:
        sums = assemble.write(portions, aside)
        _report(cfg, portions, told, rules, aside, began)
        folders = [*(one.folder for one in (*parts, *held)), *(one.folder for one in portions)]
        counts = {
            "rows": told.rows,
            "kept": told.kept,
            "files": told.files,
            "made_from": [str(folder.relative_to(home)) for folder in folders],
        }
        (aside / DONE).write_text(json.dumps(counts, indent=1) + "\n")
        more = [aside / DONE, *(file for file in (aside / "report").rglob("*") if file.is_file())]
        sealed.seal(
            aside, sums | {str(file.relative_to(aside)): scan.one(file).sum for file in more}, home / part.DIGESTS
        )
    return place


def _report(cfg: Config, portions: list[Portion], told: Told, rules: Rules, out: Path, began: float) -> None:
    from synergy.data import page

    page.write(cfg, [one.part for one in portions], told, rules, out, time.monotonic() - began)
    with (out / "report" / "problems.jsonl").open("wb") as stream:
        for file in (file for one in portions for file in one.files(portion.PROBLEMS)):
            stream.write(file.read_bytes())


def _refusal(told: Told, page: Path) -> str:
    """What is wrong, where, and what would let it pass."""
    if not told.fails:
        return f"no row is left: the policies dropped all {sum(told.rows.values())}; see {page}"
    lines = [f"nothing was written, {sum(told.fails.values())} problems (all listed beside {page}):"]
    for check, count in told.fails.items():
        source, where, column, what = told.examples[check, "fails"][0]
        at = f"{source}: {where}" + (f", column {column}" if column else "")
        can = "drop (or repair)" if "repair:" in problems.CHECKS[check] else "drop"
        lines.append(f"  {check}: {count} rows, first {at}: {what}; data.checks.{check}={can} lets the others pass")
    return "\n".join(lines)


def _sources(cfg: Config, home: Path) -> list[Source]:
    """Sources with their paths resolved. Raises UserError for names used twice, unknown layouts, hub names without commit."""
    names = [given.name for given in cfg.data.sources]
    found = []
    for given in cfg.data.sources:
        where = f"data.sources {given.name}"
        if names.count(given.name) > 1 or not externals.HUB_NAME.fullmatch(f"a/{given.name}"):
            raise UserError(f"{where}: a name of letters, digits, '-', '_' and '.', unlike the others")
        if given.layout not in SHAPES or given.into not in INTO:
            raise UserError(
                f"{where}: layout={given.layout} is one of {', '.join(SHAPES)}, into={given.into} one of {', '.join(INTO)}"
            )
        if given.into == "benchmark" and given.name in ("train", "val"):
            raise UserError(f"{where}: a benchmark can't have the name of a split")
        media = Path(given.media).expanduser().resolve() if given.media else None
        if media is not None and not media.exists():
            raise UserError(f"{where}: media={given.media}: no such folder or zip file")
        path = externals.data_set(given.path, given.revision, f"{where}: path")
        found.append(
            Source(given.name, path, given.layout, given.columns, given.split, given.subset, media, given.into)
        )
    return found


@contextmanager
def _telling() -> Iterator[Tell]:
    """Progress: a line that changes on a terminal, one every fifteen seconds elsewhere."""
    began = last = time.monotonic()
    live = sys.stdout.isatty()

    def tell(name: str, rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if live or now - last > 15:
            last = now
            text = f"{name}: {rows:,} rows, {rows / max(now - began, 0.1):,.0f} a second"
            print(f"\r{text:<70}" if live else text, end="" if live else "\n", flush=True)

    yield tell
    if live:
        print(f"\r{'':<70}\r", end="", flush=True)

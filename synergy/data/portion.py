"""A source's portion of the output: its rows that the policies let through, in the files of every framework.

It is kept like the part that it is made from, and found again as long as that part, the policies and limits, what the rows are
held against, and the ids that other sources took stay; so a new source leaves the portions of the others alone. Processes take
spans of rows and write a file of each kind for every span.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from synergy import machine
from synergy.data import overlap, records, sealed, told, writers
from synergy.data.checks import TEMPLATE_TOKENS
from synergy.data.crew import Crew
from synergy.data.ids import Named
from synergy.data.overlap import Index
from synergy.data.part import DIGESTS, Part, Span, Tell, rows_of
from synergy.data.problems import Problem
from synergy.data.records import Record
from synergy.data.told import Told
from synergy.data.writers import Turn
from synergy.driver import identity, manifest, scan
from synergy.errors import UserError

VERSION = 1
"""Of what is written: raised by whoever changes the files of a framework."""
FOLDER, DONE = "portions", "told.json"
SPAN = 2048
"""Least rows that a process takes at a time."""
RECORDS, SFT, RL, PROBLEMS = "records.jsonl", "llamafactory.jsonl", "verl.parquet", "problems.jsonl"
IMAGES, TABLE = "images.txt", "vlmevalkit.tsv"
"""Endings of a span's files."""
BENCHMARK = "benchmark"


@dataclass(frozen=True)
class Rules:
    """policies: of every check. cutoff_len, max_prompt: tokens; None: without limit."""

    policies: Mapping[str, str]
    instruction: str
    cutoff_len: int | None
    max_prompt: int | None


@dataclass(frozen=True)
class Portion:
    """folder: with the files of every span, whose names begin with its number. sums: of them, by name."""

    part: Part
    key: str
    folder: Path
    told: Told
    sums: Mapping[str, str]

    def files(self, ending: str) -> list[Path]:
        return sorted(self.folder.glob(f"*.{ending}"))


@dataclass(frozen=True)
class Job:
    """names: what is wrong with the ids of rows. against: parts that they are held against."""

    part: Part
    rules: Rules
    names: Named
    against: tuple[overlap.Held, ...]
    out: Path


def of_part(job: Job, home: Path, crew: Crew, tell: Tell) -> Portion:
    """The portion of a part below ``home``, made unless it is there, whatever ``job.out`` says. Raises UserError
    for an image of the part that was changed."""
    part, source = job.part, job.part.source
    made_from = {
        "part": part.key,
        "into": source.into,
        "rules": asdict(job.rules),
        "names": [[row, problem.row()] for row, problem in job.names.items()],
        "against": [[held.key, held.images] for held in job.against],
        "version": VERSION,
    }
    key = identity.sha(identity.canonical(made_from))
    folder = home / FOLDER / f"{source.name}-{key[:12]}"
    if (folder / DONE).exists() and sealed.broken(folder, home / DIGESTS) is None:
        known = told.parse(json.loads((folder / DONE).read_text()))
        return Portion(part, key, folder, known, manifest.read(folder) or {})
    found, sums = Told(), dict[str, str]()
    with machine.folder_aside(folder, f"data.sources {source.name}") as aside:
        job = replace(job, out=aside)
        spans = part.spans(1 << 62 if source.into == BENCHMARK else SPAN)
        for more, files in crew.map(partial(_write, job), spans, f"data.sources {source.name}"):
            found.add(more)
            sums |= files
            tell(f"{source.name}, written", found.rows[source.name])
        text = json.dumps(found.row()) + "\n"
        (aside / DONE).write_text(text)
        sealed.seal(aside, {**sums, DONE: scan.content(text.encode())}, home / DIGESTS)
    return Portion(part, key, folder, found, sums)


def _write(job: Job, span: Span) -> tuple[Told, dict[str, str]]:
    """Writes a span's files; returns what was found, and the files' sums."""
    found, into = Told(), job.part.source.into
    number = f"{span.first:08d}"
    paths = {ending: job.out / f"{number}.{ending}" for ending in (PROBLEMS, RECORDS, IMAGES, SFT, RL, TABLE)}
    with ExitStack() as stack:
        texts = {e: stack.enter_context(paths[e].open("w", encoding="utf-8")) for e in (PROBLEMS, RECORDS, IMAGES, SFT)}
        rows = _kept(job, span, found, texts)
        if into == BENCHMARK:
            writers.vlmevalkit(paths[TABLE], [record for record, _ in rows], job.part.folder, lossless=True)
        else:
            turns, media = _turns(rows, job.rules.instruction, texts[SFT], found), _Media(job.part)
            split = "train" if into == "train" else "validation"
            count = writers.verl(
                paths[RL], turns, media, job.rules.instruction, split=split, lossless=True, first=span.first
            )
            found.files[f"verl/{split}"] += count
            if not count:
                paths[RL].unlink()
    return found, {path.name: scan.one(path).sum for path in job.out.glob(f"{number}.*")}


def _turns(rows: Iterator[tuple[Record, str]], instruction: str, sft: TextIO, found: Told) -> Iterator[Turn]:
    """Writes LLaMA-Factory's rows on the way."""
    for record, text in rows:
        if record.trace:
            sft.write(writers.llamafactory_row(record, record.trace, instruction, text) + "\n")
            found.files["llamafactory"] += 1
        yield Turn(record, text=text)


class _Media:
    """The images of a part. Of one that was kept from an earlier call, what their names say of their content is checked."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, name: str) -> bytes:
        data = (self.part.folder / name).read_bytes()
        if not self.part.new and scan.content(data) != Path(name).stem:
            raise UserError(
                f"{self.part.folder / name} was changed since it was read; delete {self.part.folder} and try again"
            )
        return data


def _kept(job: Job, span: Span, found: Told, texts: Mapping[str, TextIO]) -> Iterator[tuple[Record, str]]:
    """Records as they are written, and their JSON. Every problem is told, with what came of it."""
    name, number = job.part.source.name, span.first
    for row, shared in _with_overlap(job, span):
        found.rows[name] += 1
        record = _decide(job, row, [*shared, *filter(None, [job.names.get(number)])], found, texts[PROBLEMS])
        number += 1
        if record is None:
            continue
        found.kept[name] += 1
        for what, count in row["tokens"].items():
            found.lengths[what].append(count if what != "trace" or record.trace else 0)
        text = writers.whole(record)
        texts[RECORDS].write(text + "\n")
        texts[IMAGES].writelines(name + "\n" for name in record.images)
        yield record, text


def _with_overlap(job: Job, span: Span) -> Iterator[tuple[dict[str, Any], list[Problem]]]:
    rows = rows_of(job.part.folder, span)
    index = _index(job.against) if job.against else None
    while batch := list(islice(rows, overlap.AT_ONCE)):
        there = [row for row in batch if row["record"] is not None]
        shared = iter(index.check(there, job.part.folder) if index is not None else ())
        for row in batch:
            problem = next(shared, None) if row["record"] is not None else None
            yield row, [problem] if problem is not None else []


@cache
def _index(against: tuple[overlap.Held, ...]) -> Index:
    return Index(against)


def _decide(job: Job, row: Mapping[str, Any], more: Sequence[Problem], found: Told, listed: TextIO) -> Record | None:
    changes: dict[str, Any] = {}
    left, source = row["record"] is not None, job.part.source
    problems = [Problem(*problem) for problem in row["problems"]]
    problems += _lengths(row, job.rules) if left and source.into != BENCHMARK else []
    for problem in (*problems, *more):
        policy = job.rules.policies[problem.check]
        outcome = {"fail": "fails", "drop": "dropped", "repair": "repaired"}[policy]
        if policy == "repair":
            if problem.repair is None:
                outcome = "dropped"
            else:
                changes |= problem.repair
        left = left and outcome == "repaired"
        found.problem(problem.check, outcome, [source.name, row["where"], problem.column, problem.what])
        line = {"check": problem.check, "outcome": outcome, "source": source.name, "row": row["where"]}
        listed.write(json.dumps({**line, "column": problem.column, "what": problem.what}) + "\n")
    if not left:
        return None
    if not changes:
        return Record(
            **{**row["record"], "images": tuple(row["record"]["images"])}
        )  # as it was parsed when it was read
    changes |= {"images": [image[0] for image in changes["images"]]} if "images" in changes else {}
    return records.parse({**row["record"], **changes}, row["where"])


def _lengths(row: Mapping[str, Any], rules: Rules) -> Iterator[Problem]:
    tokens = row["tokens"]
    asked = tokens.get("prompt", 0) + tokens.get("images", 0) + TEMPLATE_TOKENS
    total = asked + tokens.get("trace", 0)
    if rules.max_prompt and asked > rules.max_prompt:
        yield Problem("prompt", "question", f"its prompt makes {asked} tokens, over {rules.max_prompt}")
    if rules.cutoff_len and row["record"]["trace"] and total > rules.cutoff_len:
        what = f"prompt and trace make {total} tokens, over {rules.cutoff_len}"
        yield Problem("response", "trace", what, {"trace": None})

"""Program of the ``prepare`` stage: ``python -m synergy.data.prepare SPEC.json`` writes one part of the data below ``out``.

Parts: ``train`` (records, LLaMA-Factory files), ``benchmarks`` (VLMEvalKit TSVs), ``round`` (rounds.py), ``mixture``
(mixture.py), ``distill`` (distill.py), ``levels`` and ``benchmark_levels`` (levels.py). Exits with code 2 and one line for a
mistake in the data.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from synergy.data import checks, distill, levels, mixture, records, rounds, selection, tagged, within, writers
from synergy.data.records import Record
from synergy.driver import handoff
from synergy.errors import UserError

LEVELS = "levels.json"
"""Beside the lab's base model: record id -> passes of 16 runs."""


def train(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """records/{train,validation}.jsonl with their images, order.json (training ids), and sft/ with the full long traces."""
    source = _source(spec, out / "lab")
    splits = {"train": spec["train"], "validation": spec["validation"]}
    grid, words = checks.grid(Path(spec["base"])), checks.tokenizer(Path(spec["base"]))
    rows: dict[str, list[tuple[Record, str, str | None]]] = {}
    figures: dict[str, Any] = {}
    for split, name in splits.items():
        if not name:
            continue
        found = records.read(source / name)[: spec["limit"] if split == "train" else None]
        if split == "train" and spec.get("select"):
            found = selection.of_records(found, spec["select"], out)
        checks.answers(found, str(source / name))
        visual = checks.images(found, source, grid)
        rows[split] = [(record, record.trace, spec["instruction"]) for record in found if record.trace]
        tokens = checks.lengths(rows[split], visual, words, spec["cutoff_len"])
        _take_images(found, source, out / "records")
        records.write(out / "records" / f"{split}.jsonl", found)
        (out / "records" / f"{split}_visual_tokens.json").write_text(json.dumps(visual))
        figures[split] = {
            "records": len(found),
            "traces": len(rows[split]),
            "tokens_mean": mean(tokens) if tokens else 0,
        }
        print(f"{split}: {len(found)} records, {len(rows[split])} traces, longest {max(tokens, default=0)} tokens")
        if split == "train":
            (out / "order.json").write_text(json.dumps([record.id for record in found]) + "\n")
    writers.llamafactory(out / "sft", rows)
    shutil.rmtree(out / "lab", ignore_errors=True)
    return figures


def benchmarks(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """One TSV per benchmark and ``benchmarks.json`` that lists them."""
    listed, figures = [], {}
    by_records = any("records" in bench for bench in spec["benchmarks"])
    source = _source(spec, out / "lab") if by_records else None
    for bench in spec["benchmarks"]:
        file = out / f"{bench['name']}.tsv"
        given = levels.read(Path(spec["levels"][bench["name"]])) if bench.get("levels") == "given" else None
        if source is not None and "records" in bench:
            told = _from_records(spec, bench, source, file, given)
        else:
            columns = {name: bench[name] for name in ("name", "kind", "split", "level", "passrate", "question")}
            counts = {} if bench.get("levels") == "none" else given
            place = Path(spec["tagged"][bench["name"]])
            told = tagged.write(tagged.Source(folder=place, counts=counts, **columns), file)
        listed.append({"name": bench["name"], "tsv": file.name, "kind": bench["kind"]})
        figures[bench["name"]] = told
        levels_told = [told[f"level_{n}"] for n in range(1, 6)]
        print(f"{bench['name']}: {sum(levels_told)} questions, by level {levels_told}")
    (out / "benchmarks.json").write_text(json.dumps(listed, indent=1) + "\n")
    shutil.rmtree(out / "lab", ignore_errors=True)
    return figures


def _from_records(
    spec: Mapping[str, Any], bench: Mapping[str, str], source: Path, path: Path, given: Mapping[str, int] | None
) -> dict[str, int]:
    """The table of a benchmark of records; returns questions per level. given: passes in place of those that the data tell."""
    found = records.read(source / bench["records"])
    if bench.get("levels") == "none":
        found = [replace(record, level=None, passes=None) for record in found]
    elif given is not None:
        levels.require(given, [record.id for record in found], bench["name"])
        found = [_levelled(replace(record, level=None), given) for record in found]
    else:
        file = Path(spec["base"]) / LEVELS
        known = json.loads(file.read_text()) if spec["source"] == "lab" and file.exists() else {}
        found = [_levelled(record, known) for record in found]
    unknown = [record.id for record in found if record.level is None]
    if unknown and bench.get("levels") != "none":
        raise UserError(
            f"benchmark {bench['name']}: {len(unknown)} questions have no difficulty level (first: {unknown[0]!r}); "
            "add 'passes' (correct of 16 runs of the base model) or 'level' to its records, or let synergy tag "
            "recipe.questions=benchmarks find them"
        )
    checks.answers(found, str(source / bench["records"]))
    checks.images(found, source, checks.grid(Path(spec["base"])))
    writers.vlmevalkit(path, found, source)
    return records.by_level(found)


def _levelled(record: Record, tagged: Mapping[str, int]) -> Record:
    """The record with the passes that the lab's base model was tagged with, and the level that follows from passes."""
    passes = tagged.get(record.id, record.passes)
    if record.level is None and passes is not None:
        return replace(record, passes=passes, level=records.level(passes))
    return record


def _source(spec: Mapping[str, Any], lab: Path) -> Path:
    """The folder of the records: the user's, or the lab's, made on the spot."""
    if spec["source"] != "lab":
        return Path(spec["inputs_source"])
    from synergy.lab import digits

    digits.write(lab, seed=spec["seed"], **spec["sizes"])
    return lab


def _take_images(found: list[Record], source: Path, target: Path) -> None:
    """Links the images (copies where links are impossible) under the same relative names."""
    for record in found:
        for name in record.images:
            place = target / name
            if place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            handoff.link(source / name, place)


PARTS = {
    "train": train,
    "benchmarks": benchmarks,
    "round": rounds.build,
    "within_step": within.build,
    "mixture": mixture.build,
    "distill": distill.build,
    "levels": levels.build,
    "benchmark_levels": levels.of_benchmarks,
}


def main(argv: list[str]) -> int:
    spec = json.loads(Path(argv[1]).read_text())
    out = Path(spec["out"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        figures = PARTS[spec["part"]](spec, out)
    except UserError as error:
        print(error, flush=True)
        return 2
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

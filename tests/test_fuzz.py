"""Fuzzed configs and files: one clear message or a good end, never a traceback, a hang, or a file outside the run directory.

``python benchmarks/input_fuzz.py minutes=10`` runs the same cases for longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from test_strategies import config

from synergy import checkpoints, cli, compose, lab, plan, stages, status
from synergy.data import levels, prepare, records, tagged
from synergy.data.layouts import LAYOUTS
from synergy.driver import ledger, retention, state
from synergy.driver import plan as driver_plan
from synergy.errors import UserError

TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "../../out.png", "/etc/passwd", "https://host/x.png", "x.png", "s/../x.png",
    "link.png",     "data:image/png;base64,AA", "[]", "{}", "null",
    "True", "1e999", "NaN", "-1", "9" * 5000,
    "é" * 300, "\u202e", "${oc.env:HOME}", "${seed}", "${nope", "'", '"', "\\", "a=b", "a,b", "[1,2", "{a: 1}", "\\boxed{",
    "<image>" * 5, "\n\n", "A", "3", "level", "lab",
)  # fmt: skip
texts = st.sampled_from(TEXTS) | st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from([10**30, -1, 0, 1, 16, 2.5])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
GOOD = {
    "id": "a", "question": "How many?", "answer": "3", "images": ["x.png"], "choices": {"A": "3", "B": "4"},
    "answer_type": None,
    "trace": "<think>3</think>\\boxed{3}", "short": "3", "kind": "sum", "steps": 1, "level": 2, "passes": 9,
}  # fmt: skip


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder of its own with a picture, a way out of it, and beside it a tree that nothing may touch."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root, here = Path(name), Path.cwd()
        (root / "outside").mkdir()
        Image.new("RGB", (140, 28)).save(root / "outside/secret.png")
        (root / "source").mkdir()
        shutil.copy(root / "outside/secret.png", root / "source/x.png")
        (root / "source/link.png").symlink_to(root / "outside/secret.png")
        (root / "runs").mkdir()
        before = _seen(root)
        os.chdir(root / "outside")
        try:
            yield root
        finally:
            os.chdir(here)
        assert _seen(root) == before, "something was written outside the run directory"


def _seen(root: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in root.rglob("*") if not p.is_relative_to(root / "runs")} | {
        str(root): len(list(root.iterdir()))
    }


def quietly(call: Callable[[], Any]) -> Any:
    """Its result, or the message of its UserError, which must say something."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return call()
        except UserError as error:
            assert len(str(error)) > 20, error
            return str(error)


# Configs -------------------------------------------------------------------------------------------------------------


@functools.cache
def names() -> list[str]:
    """All keys of a composed config."""
    found: list[str] = []

    def walk(tree: Any, at: str) -> None:
        if isinstance(tree, dict) and tree:
            for key, value in tree.items():
                walk(value, f"{at}.{key}" if at else str(key))
        found.append(at)

    walk(dataclasses.asdict(config("progressive")), "")
    return [name for name in found if name]


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    words = [
        f"recipe={draw(st.sampled_from(['progressive', 'sft', 'model_merging', 'base', 'checkpoints', 'data_mixing']))}"
    ]
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(names()) | texts)
        value = draw(texts | scalars.map(str) | values.map(lambda v: json.dumps(v, default=str)))
        words.append(
            draw(st.sampled_from(["", "", "", "+", "++", "~"])) + key + draw(st.sampled_from(["=", "=", ""])) + value
        )
    return [word for word in words if not word.startswith("-") and "hydra" not in word]


def case_overrides(words: list[str]) -> None:
    """Composed, planned and checked as `synergy run` does it before anything starts."""
    with place() as root, mock.patch.object(sys, "argv", ["synergy plan", f"run.dir={root / 'runs'}", *words]):

        def action(tasks: list[compose.Task]) -> None:
            plan.action(tasks)
            for task in tasks:
                todo = driver_plan.of_config(task.cfg)
                for step in todo.steps:
                    if step.stage.kind in ("sft", "merge", "evaluate"):
                        stages.kind(step.stage.kind).check(step.stage, todo.pythons)

        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = cli.with_config(action)
        assert code in (0, 2) and "Traceback" not in told.getvalue(), told.getvalue()
        assert (code == 2) == told.getvalue().startswith("synergy: "), told.getvalue()


# Files ---------------------------------------------------------------------------------------------------------------


def torn(text: str, seed: int) -> bytes:
    """As it is, or cut, with foreign bytes, nested beyond reason, or in another encoding."""
    rng = random.Random(seed)
    data = text.encode("utf-8", "surrogatepass")
    cut = rng.randrange(len(data) + 1)
    ways = (
        data, data, data, data[:cut], data[:cut] + rng.randbytes(3) + data[cut:], data[:cut] + b"\0" + data[cut:],
        b"[" * 1500, b'{"a":' * 1500, b"9" * 6000, b"", b"\xef\xbb\xbf" + data,
        data.decode("utf-8", "replace").encode("utf-16"),
        data + data, b"&a [*a]", b"a: &a {b: *a}", b"? {a: b}\n: c", b"!!python/object/apply:os.system ['touch PLANTED']",
    )  # fmt: skip
    return rng.choice(ways)


seeds = st.integers(0, 10**6)
rows = st.lists(st.dictionaries(st.sampled_from([*GOOD, "other"]), values, max_size=2), min_size=1, max_size=3)


def _jsonl(changes: list[dict[str, Any]], seed: int) -> bytes:
    rng = random.Random(seed)
    made = [{**GOOD, "id": str(number), **change} for number, change in enumerate(changes)]
    for row in made:
        if rng.random() < 0.1:
            row.pop(rng.choice(list(row)))
    return torn("".join(json.dumps(row) + "\n" for row in made), rng.choice((0, seed)))


def case_records(given: tuple[list[dict[str, Any]], int]) -> None:
    """Through the program of the prepare stage: training data and a benchmark."""
    with place() as root:
        (root / "runs/source").mkdir()
        for file in (root / "source").iterdir():
            shutil.copy2(file, root / "runs/source" / file.name, follow_symlinks=False)
        (root / "runs/source/r.jsonl").write_bytes(_jsonl(*given))
        common = {
            "source": "folder",
            "inputs_source": str(root / "runs/source"),
            "base": str(lab.BASE),
            "seed": 0,
            "sizes": {},
        }
        train = {
            "part": "train",
            "train": "r.jsonl",
            "validation": None,
            "limit": None,
            "instruction": "Think.",
            "cutoff_len": 256,
        }
        bench = {"part": "benchmarks", "benchmarks": [{"name": "B", "records": "r.jsonl", "kind": "open"}]}
        for number, spec in enumerate((train, bench)):
            file = root / "runs/spec.json"
            file.write_text(json.dumps({**common, **spec, "out": str(root / f"runs/out-{number}")}))
            assert quietly(lambda file=file: prepare.main(["prepare", str(file)])) in (0, 2)


def case_models(given: tuple[Any, int]) -> None:
    with place() as root:
        content, seed = given
        (root / "runs/models.yaml").write_bytes(torn(json.dumps(content, default=str), seed))
        quietly(lambda: checkpoints.read(root / "runs/models.yaml"))


def case_levels(given: tuple[Any, int]) -> None:
    with place() as root:
        (root / "runs/levels.json").write_bytes(torn(json.dumps(given[0]), given[1]))
        found = quietly(lambda: levels.read(root / "runs/levels.json"))
        assert isinstance(found, str) or all(0 <= count <= 16 for count in found.values())


PICTURE = io.BytesIO()
Image.new("RGB", (28, 28)).save(PICTURE, "PNG")
LEVELLED = {
    "id": "1", "question": "q", "answer": "3", "level": 1, "options": "[]", "choices": [], "query": "q", "query_cot": "q",
    "pid": "1",
    "sample_index": "1", "index": 1, "answer_type": "integer", "precision": 1, "metadata": {"task": "t"},
    **{name: {"bytes": PICTURE.getvalue(), "path": None} for name in ("image", "decoded_image", "image_1")},
}  # fmt: skip
cells = st.dictionaries(
    st.sampled_from(list(LEVELLED)), scalars | st.binary(max_size=20) | st.lists(texts, max_size=3), max_size=2
)


def case_parquet(given: tuple[str, dict[str, Any], int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind, change, seed = given
    with place() as root:
        folder = root / "runs/parquet"
        folder.mkdir()
        try:
            pq.write_table(pa.Table.from_pylist([{**LEVELLED, **change}]), folder / "x.parquet")
        except (pa.ArrowException, ValueError, OverflowError, UnicodeError, TypeError):
            return  # nobody can write such a file
        data = (folder / "x.parquet").read_bytes()
        if seed % 4 == 0:
            (folder / "x.parquet").write_bytes(data[: seed % len(data)] + b"\xff" * 3 + data[seed % len(data) + 3 :])
        source = tagged.Source("B", folder, kind, level="level")
        quietly(lambda: tagged.write(source, root / "runs/B.tsv"))


base = functools.cache(lambda: config("base"))
ENTRY = {
    "key": "k", "kind": "sft", "name": "one", "output": "stages/sft-k/output", "digest": "d", "fingerprint": "f",
    "identity": {},
    "inputs": {}, "figures": {}, "started": 1.0, "seconds": 1.0, "peak_memory": 1, "attempt": 1, "schema": 1,
}  # fmt: skip
changed = st.dictionaries(st.sampled_from([*ENTRY, "new"]), values, max_size=3)


def case_run_directory(given: tuple[dict[str, Any], int]) -> None:
    """A ledger and a state file from elsewhere: read, told, planned upon, cleaned."""
    change, seed = given
    with place() as root:
        run, screen = root / "runs", Console(file=io.StringIO())
        (run / "ledger.jsonl").write_bytes(torn(json.dumps({**ENTRY, **change}) + "\n", seed))
        (run / "state.json").write_bytes(torn(json.dumps({"schema": 1, "stages": [change], **change}), seed + 1))
        entries = ledger.read(run / "ledger.jsonl")
        state.read(run)
        quietly(lambda: status.show(run, screen))
        quietly(lambda: status.verify(run, screen))
        for item in [*retention.leftovers(run, entries), *retention.unneeded(run, entries, ())]:
            assert item.path.resolve().is_relative_to(run), "only what lies there may be cleaned"
        cfg = base()
        quietly(lambda: driver_plan.of_config(dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, dir=str(run)))))


CASES: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any], int]] = {
    "overrides": (case_overrides, overrides(), 30),
    "records": (case_records, st.tuples(rows, seeds), 50),
    "models": (case_models, st.tuples(st.dictionaries(texts, values, max_size=3) | values, seeds), 60),
    "levels": (case_levels, st.tuples(st.dictionaries(texts, scalars, max_size=3) | values, seeds), 60),
    "parquet": (case_parquet, st.tuples(st.sampled_from(list(LAYOUTS)), cells, seeds), 60),
    "run directory": (case_run_directory, st.tuples(changed, seeds), 25),
}
"""Name -> what is tried, on what, and how often in the tests."""


def fuzz(name: str, examples: int, seed: int | None = None) -> None:
    case, strategy, _ = CASES[name]
    phases = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking takes minutes

    @settings(
        max_examples=examples, deadline=None, phases=phases, suppress_health_check=list(HealthCheck), database=None
    )
    @given(strategy)
    def trial(drawn: Any) -> None:
        case(drawn)

    if seed is not None:
        from hypothesis import seed as seeded

        trial = seeded(seed)(trial)
    trial()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_nothing_from_outside_ends_in_a_traceback(name: str) -> None:
    fuzz(name, CASES[name][2])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../outside/secret.png", "leaves the folder"),
        ("a/../../outside/secret.png", "leaves the folder"),
        ("a\\..\\..\\outside\\secret.png", "leaves the folder"),
        ("/etc/hostname", "is an absolute path"),
        ("\\\\host\\share\\x.png", "is an absolute path"),
        ("C:\\x.png", "is an address"),
        ("file:///etc/hostname", "is an address"),
        ("https://host/x.png", "is an address"),
        ("data:image/png;base64,AA", "is an address"),
        ("", "names no file"),
        (".", "names no file"),
        ("link.png", "is a link to"),
        ("deep/link.png", "is a link to"),
    ],
)
def test_a_row_names_no_picture_outside_its_folder(name: str, told: str) -> None:
    with place() as root:
        source = root / "runs/source"
        shutil.copytree(root / "source", source, symlinks=True)
        (source / "deep").symlink_to(root / "outside")
        (source / "r.jsonl").write_text(json.dumps({**GOOD, "images": [name]}) + "\n")
        spec = {"source": "folder", "inputs_source": str(source), "base": str(lab.BASE), "train": "r.jsonl",
                "validation": None, "limit": None, "instruction": "", "cutoff_len": 256, "part": "train",
                "out": str(root / "runs/out")}  # fmt: skip
        with pytest.raises(UserError, match=told):
            prepare.train(spec, root / "runs/out")
        assert not list((root / "runs/out").rglob("*.png"))


def test_a_link_within_the_folder_or_the_hubs_cache_is_followed(tmp_path: Path) -> None:
    from synergy.data import untrusted

    source = tmp_path / "hub/datasets--x/snapshots/0123"
    (source / "images").mkdir(parents=True)
    (tmp_path / "hub/datasets--x/blobs").mkdir()
    (tmp_path / "hub/datasets--x/blobs/b").write_text("b")
    (source / "images/x.png").symlink_to("../../../blobs/b")
    (source / "y.png").symlink_to("images/x.png")
    assert untrusted.inside(source, "y.png") == source / "y.png"
    (source / "z.png").symlink_to(tmp_path / "hub")
    with pytest.raises(ValueError, match="outside"):
        untrusted.inside(source, "z.png")


def test_a_benchmarks_name_names_no_file_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't name one"):
        driver_plan.of_config(config("base", "evaluate.benchmarks.0.name='../../x'", f"run.dir={tmp_path}"))


def test_a_run_without_benchmarks_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.benchmarks: there is none"):
        driver_plan.of_config(config("rl", "evaluate.benchmarks=[]", f"run.dir={tmp_path}"))


@pytest.mark.parametrize(
    "row", [{"choices": [1]}, {"id": {}}, {"question": 3}, {"level": True}, {"trace": 5}, {"steps": "x"}]
)
def test_fields_of_another_type_are_told(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"r\.jsonl:1: "):
        records.parse({**GOOD, **row}, "r.jsonl:1")


def test_a_parquet_file_with_a_damaged_schema_is_told(tmp_path: Path) -> None:
    """Found by the longer run: a column's name that is no UTF-8."""
    with pytest.raises(UserError, match=r"can't be read as parquet|damaged"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([LEVELLED]), tmp_path / "x.parquet")
        data = (tmp_path / "x.parquet").read_bytes()
        (tmp_path / "x.parquet").write_bytes(data.replace(b"query_cot", b"qu\xff\xffy_cot"))
        tagged.write(tagged.Source("B", tmp_path, "mmstar", level="level"), tmp_path / "B.tsv")

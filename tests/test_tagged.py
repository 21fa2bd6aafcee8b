"""The paper's five benchmarks from their published parquet files, in a folder or on a hub, to VLMEvalKit's tables."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import published
import pytest
from PIL import Image
from published import LEVEL, RATE
from test_strategies import config, plan

from eval.spec import Benchmark, read_questions
from synergy.data import prepare, tagged
from synergy.data.layouts import LAYOUTS, choices_within
from synergy.driver import externals, identity
from synergy.errors import UserError

COMMIT = "0123456789" * 4


def source(folder: Path, kind: str, **changes: Any) -> tagged.Source:
    return tagged.Source(
        **{"name": "T", "folder": folder / kind, "kind": kind, "level": LEVEL, "passrate": RATE, **changes}
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_all_five_through_the_prepare_stage(tmp_path: Path) -> None:
    """One spec with all five: their tables, and what the evaluation reads of them."""
    published.write(tmp_path / "hub")
    bench = {"split": None, "level": LEVEL, "passrate": RATE, "question": None}
    spec = {
        "benchmarks": [{"name": f"T_{kind}", "kind": kind, **bench} for kind in LAYOUTS],
        "tagged": {f"T_{kind}": str(tmp_path / "hub" / kind) for kind in LAYOUTS},
    }
    out = tmp_path / "out"
    out.mkdir()
    figures = prepare.benchmarks(spec, out)
    tables = {kind: rows_of(out / f"T_{kind}.tsv") for kind in LAYOUTS}
    assert {k: [r["id"] for r in rows] for k, rows in tables.items()} == {
        "mathvision": ["4", "5", "6"],
        "mathverse": ["1", "2"],
        "mathvista": ["1", "2"],
        "mmmu": ["validation_Art_1", "validation_Art_2"],
        "mmstar": ["0", "1"],
    }
    assert {k: [(r["index"], r["difficulty_level"], r["passes"]) for r in rows] for k, rows in tables.items()} == {
        "mathvision": [("0", "1", "14"), ("1", "2", "9"), ("2", "3", "5")],  # not its own column level, which says 9
        "mathverse": [("0", "4", "4"), ("1", "5", "1")],
        "mathvista": [("0", "2", "8"), ("1", "2", "8")],
        "mmmu": [("0", "3", "6"), ("1", "3", "6")],
        "mmstar": [("0", "1", "16"), ("1", "1", "16")],
    }
    assert figures["T_mathvision"] == {"level_1": 1, "level_2": 1, "level_3": 1, "level_4": 0, "level_5": 0}
    vision, verse, vista, mmmu, star = (tables[kind] for kind in LAYOUTS)
    assert [r["choices"] for r in vision] == ["['A', 'B', 'C']", "['3', '4']", "[]"]
    assert [r["question"] for r in vision] == [
        "Which?\n<image1>", "How many?\n<image1>\nChoices:\n(A) 3\n(B) 4", "How long?",
    ]  # fmt: skip
    assert [(r["choices"], r["question_for_eval"].split("\n")[0]) for r in verse] == [
        ("['100°', '80°']", "As shown, angle?"), ("[]", "How long?"),
    ]  # fmt: skip
    assert [r["question"].split("\n")[0] for r in verse] == ["Reason first."] * 2
    assert [(r["answer_option"], r["precision"], r["task"], r["skills"]) for r in vista] == [
        ("", "1.0", "geometry", "['algebra', 'counting']"), ("B", "", "geometry", "['algebra', 'counting']"),
    ]  # fmt: skip
    assert [(r["A"], r["B"], r["C"], r["split"]) for r in mmmu] == [
        ("x, y", "<image 3>", "", "validation"), ("", "", "", "validation"),
    ]  # fmt: skip
    assert [len(json.loads(r["image"])) if r["image"].startswith("[") else 1 for r in mmmu] == [3, 1]
    assert json.loads(mmmu[0]["image"])[2] == base64.b64encode(published.picture(3)).decode()
    assert [(r["question"], r["A"], r["B"], r["C"], r["D"], r["l2-category"]) for r in star] == [
        ("Which colour?", "red, or so.", "blue", "None", "", "scene"), ("Which number?", "3", "4", "5", "6", "scene"),
    ]  # fmt: skip
    for kind, rows in tables.items():  # the evaluation's own reader takes them
        questions = read_questions(Benchmark("T", out / f"T_{kind}.tsv", kind))
        assert [q.level for q in questions] == [int(r["difficulty_level"]) for r in rows]
    listed = json.loads((out / "benchmarks.json").read_text())
    assert listed[0] == {"name": "T_mathvision", "tsv": "T_mathvision.tsv", "kind": "mathvision"}


@pytest.mark.parametrize("rate", ["share", "count"])
@pytest.mark.parametrize(("level", "passes"), [(1, 16), (2, 8), (4, 4), (5, 0)])
def test_pass_rates_are_shares_or_counts(tmp_path: Path, rate: str, level: int, passes: int) -> None:
    published.write(tmp_path)
    file = tmp_path / "mmstar/mmstar.parquet"
    published.change(file, LEVEL, [level, 1])
    published.change(file, RATE, [passes, 16] if rate == "count" else [passes / 16, 1.0])
    told = tagged.write(source(tmp_path, "mmstar"), tmp_path / "t.tsv")
    assert [row["passes"] for row in rows_of(tmp_path / "t.tsv")] == [
        str(passes),
        "16",
    ] and "levels_unlike_passes" not in told
    published.change(file, LEVEL, [6 - level, 1])
    assert tagged.write(source(tmp_path, "mmstar"), tmp_path / "t.tsv")["levels_unlike_passes"] == 1


MENDED: list[tuple[str, str, str, list[Any] | None, str]] = [
    ("mathvision", "data/test-00000-of-00001.parquet", LEVEL, None, r"lacks \['diff.*columns are \[.*'level'.*and no other"),
    ("mathvision", "data/test-00000-of-00001.parquet", RATE, None, r"lacks \['passrate"),
    ("mathvision", "data/test-00000-of-00001.parquet", "id", ["4", "5", "4"], "row 2: id '4' is used twice"),
    ("mathvision", "data/test-00000-of-00001.parquet", LEVEL, [1, 0, 2], "row 1: .* is 0; a level is 1 to 5"),
    ("mathvision", "data/test-00000-of-00001.parquet", LEVEL, [1, None, 2], "row 1: .* is None; a level is 1 to 5"),
    ("mathvision", "data/test-00000-of-00001.parquet", RATE, [1, 17, 2], "row 1: .* is 17.0, neither a share nor a count"),
    ("mathvision", "data/test-00000-of-00001.parquet", RATE, [1, 2.5, 2], "row 1: .* is 2.5, neither a share nor a count"),
    ("mathvision", "data/test-00000-of-00001.parquet", RATE, ["x", "1", "1"], "no pass rate"),
    ("mathvision", "data/test-00000-of-00001.parquet", "answer", ["B", "", "3"], "row 1: answer is empty"),
    ("mathverse", "testmini.parquet", "image", ["a.png", "b.png"], "row 0: column image holds no picture but 'a.png'"),
    ("mathverse", "testmini.parquet", "image", [published.picture(1), published.picture(1)[:99]], "row 1: the picture"),
    ("mathverse", "testmini.parquet", "image", [published.picture(1), None], "row 1: has no image"),
    ("mathvista", "data/testmini-00000-of-00001-ab.parquet", "query", None, r"lacks \['query'\]"),
    ("mathvista", "data/testmini-00000-of-00001-ab.parquet", "choices", [b"abc"] * 2, "is no list"),
    ("mathvista", "data/testmini-00000-of-00001-ab.parquet", "choices", [list("abcdefghijk")] * 2, "11 choices, more than 10"),
    ("mmmu", "Art/validation-00000-of-00001.parquet", "options", ["__import__('os')"], "is no list"),
    ("mmmu", "Art/validation-00000-of-00001.parquet", "question", ["<image 2>?"], "'<image 2>' stands for none of its 1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "column", "values", "reason"), MENDED)
def test_bad_data_set_is_one_error(
    tmp_path: Path, kind: str, file: str, column: str, values: list[Any] | None, reason: str
) -> None:
    published.write(tmp_path)
    published.change(tmp_path / kind / file, column, values)
    with pytest.raises(UserError, match=f"benchmark T: .*{reason}"):
        tagged.write(source(tmp_path, kind), tmp_path / "t.tsv")


def test_splits_are_files_and_columns_can_be_chosen(tmp_path: Path) -> None:
    published.write(tmp_path)
    tagged.write(source(tmp_path, "mathvision", split="testmini", passrate=None), tmp_path / "t.tsv")
    assert [(r["id"], r["difficulty_level"], r["passes"]) for r in rows_of(tmp_path / "t.tsv")] == [("4", "5", "")]
    tagged.write(source(tmp_path, "mathverse", question="question_for_eval"), tmp_path / "t.tsv")
    assert rows_of(tmp_path / "t.tsv")[1]["question"] == "How long?"
    with pytest.raises(UserError, match=r"no file train.parquet.*it has data/test-00000.*set split"):
        tagged.write(source(tmp_path, "mathvision", split="train"), tmp_path / "t.tsv")


def test_pictures_that_vlmevalkit_could_not_write_become_png(tmp_path: Path) -> None:
    """CMYK has no PNG; others stay byte for byte."""
    published.write(tmp_path)
    cmyk = published.picture(1, "CMYK", "JPEG")
    published.change(tmp_path / "mmstar/mmstar.parquet", "image", [cmyk, published.picture(7)])
    tagged.write(source(tmp_path, "mmstar"), tmp_path / "t.tsv")
    first, second = (base64.b64decode(row["image"]) for row in rows_of(tmp_path / "t.tsv"))
    with Image.open(io.BytesIO(first)) as made, Image.open(io.BytesIO(cmyk)) as was:
        assert (made.format, made.mode) == ("PNG", "RGB") and made.tobytes() == was.convert("RGB").tobytes()
    assert second == published.picture(7)


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """64 pictures of a megabyte: never more than a few batches in memory."""
    import tracemalloc

    out = io.BytesIO()
    Image.effect_noise((1000, 1000), 90).save(out, "PNG")
    rows = [
        published.tagged({"index": i, "question": f"Q{i}", "answer": "3", "image": out.getvalue()}, 1, 16)
        for i in range(64)
    ]
    (tmp_path / "mmstar").mkdir()
    published._save(tmp_path / "mmstar/val.parquet", rows)
    size = sum(len(row["image"]) for row in rows)
    del rows
    tracemalloc.start()
    tagged.write(source(tmp_path, "mmstar"), tmp_path / "t.tsv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "t.tsv").stat().st_size > size > 2 * peak


def test_choices_are_found_in_the_text() -> None:
    assert choices_within("Q? Choices: A:1, B:2", "Choices:") == ("Q?", ["1", "2"])
    assert choices_within("Q?\nChoices:\n(A) one. B is two\n(B) A:3\n(C) x", "Choices:")[1][2] == "x"
    for text in ("Q?", "Q?\nChoices:\nnone", "Q? Choices: B:1 C:2", "Q? Options: A: 1 B: 2"):
        assert choices_within(text, "Choices:") == (text, [])


# --- the config: records or tagged, identity, hub ---------------------------------------------------------------------


def bench(**keys: Any) -> str:
    return "evaluate.benchmarks=[{" + ", ".join(f"{name}: {value}" for name, value in keys.items()) + "}]"


def test_identity_of_records_stays_and_that_of_tagged_is_their_digest(tmp_path: Path) -> None:
    records = plan("base")["benchmarks"]
    assert records.settings["benchmarks"][0] == {"name": "DigitsOpen", "records": "bench_open.jsonl", "kind": "open"}
    assert records.inputs == {"base": "base", "source": "base"}
    published.write(tmp_path)
    made = bench(name="T", kind="mmstar", tagged=tmp_path / "mmstar")
    stage = plan("base", made)["benchmarks"]
    assert str(tmp_path) not in identity.canonical(stage.settings) and stage.inputs == {
        "base": "base",
        "tagged_T": "tagged-T",
    }
    before = externals.resolve(config("base", made), None, fetch=False)["tagged-T"]
    published.change(tmp_path / "mmstar/mmstar.parquet", RATE, [0.9375, 1.0])
    after = externals.resolve(config("base", made), None, fetch=False)["tagged-T"]
    assert before.path == after.path == tmp_path / "mmstar" and before.digest != after.digest


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"name": "T", "kind": "mmstar"}, "T: give one of records and tagged"),
        ({"name": "T", "kind": "mmstar", "tagged": "a/b", "records": "x.jsonl"}, "T: give one of records and tagged"),
        ({"name": "T", "kind": "open", "tagged": "a/b"}, "T: a tagged one is of kind mathvision, .*not 'open'"),
        ({"name": "T", "kind": "mmstar", "tagged": "a/b"}, "T: tagged=a/b is a hub name: set its revision"),
        (
            {"name": "T", "kind": "mmstar", "tagged": "a/b", "revision": "main"},
            r"set its revision \(evaluate.benchmarks.N.revision\) to its 40-digit commit",
        ),
        ({"name": "T", "kind": "mmstar", "tagged": "/no/where"}, "T: tagged=/no/where is no folder"),
    ],
)
def test_bad_benchmark_is_one_error(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        plan("base", bench(**keys))
        externals.resolve(config("base", bench(**keys)), None, fetch=False)


def test_papers_scales_evaluate_the_five_and_want_no_records_for_the_base() -> None:
    words = ["scale=qwen2_5_vl_7b", "model.path=lab"]
    stage = plan("base", *words)["benchmarks"]
    assert [b["kind"] for b in stage.settings["benchmarks"]] == list(LAYOUTS) and "source" not in stage.settings
    wanted = set(stage.inputs.values())
    with pytest.raises(UserError, match=r"benchmark MathVision: .*set its revision"):
        externals.resolve(config("base", *words), None, fetch=False, wanted=wanted)
    revisions = [f"evaluate.benchmarks.{i}.revision={COMMIT}" for i in range(5)]
    found = externals.resolve(config("base", *words, *revisions), None, fetch=False, wanted=wanted)
    assert set(found) == {"base", *(f"tagged-{b['name']}" for b in stage.settings["benchmarks"])}
    with pytest.raises(UserError, match=r"data.source is not set"):
        externals.resolve(config("sft", *words, *revisions), None, fetch=False)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A loopback server with the hub's protocol for one data set at COMMIT: its listing, and its files with ETag and commit."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, data: bytes, kind: str, body: bool = True, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            asked.append(f"{self.command} {self.path}")
            prefix = f"/datasets/own/er/resolve/{COMMIT}/"
            if self.path.startswith(f"/api/datasets/own/er/revision/{COMMIT}"):
                names = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file()]
                told = {"id": "own/er", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.reply(200, json.dumps(told).encode(), "application/json", body)
            if self.path.startswith(f"/api/datasets/own/er/tree/{COMMIT}"):
                files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
                listed = [
                    {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
                    for f in files
                ]
                return self.reply(200, json.dumps(listed).encode(), "application/json", body)
            file = folder / self.path.removeprefix(prefix)
            if not self.path.startswith(prefix) or not file.is_file():
                return self.reply(404, b"{}", "application/json", body)
            data = file.read_bytes()
            marks = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
            return self.reply(200, data, "application/octet-stream", body, **marks)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


FETCH = """
import sys
from test_strategies import config
from synergy.driver import externals
from synergy.errors import UserError
words, fetch = sys.argv[2:], sys.argv[1] == "fetch"
try:
    found = externals.resolve(config("base", *words), None, fetch)["tagged-T"]
    print(found.path, found.digest)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_hub_download_is_pinned_and_then_needs_no_network(tmp_path: Path) -> None:
    """huggingface_hub itself against a loopback hub, each time in a process of its own (it reads its settings on import)."""
    import os
    import subprocess

    published.write(tmp_path / "sets")
    (tmp_path / "sets/mmstar/images.zip").write_bytes(b"not wanted")
    made = bench(name="T", kind="mmstar", tagged="own/er", revision=COMMIT)

    def resolve(how: str, endpoint: str, **env: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).resolve().parent
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **env}
        env["PYTHONPATH"] = f"{root}{os.pathsep}{root.parent}"
        argv = [sys.executable, "-c", FETCH, how, made]
        return subprocess.run(argv, capture_output=True, text=True, env={**plain, **env}, timeout=120)

    planned = resolve("plan", "http://127.0.0.1:9")
    assert "to be downloaded" in planned.stdout, planned.stderr[-2000:]
    failed = resolve("fetch", "http://127.0.0.1:9")
    assert failed.returncode == 2 and "benchmark T: tagged=own/er: download failed" in failed.stdout
    with hub(tmp_path / "sets/mmstar") as (endpoint, asked):
        done = resolve("fetch", endpoint)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert any("mmstar.parquet" in line for line in asked) and not any(
        "zip" in line and "resolve" in line for line in asked
    )
    path, digest = done.stdout.split()
    assert path.endswith(COMMIT) and planned.stdout.split()[-1] == digest
    again = resolve("fetch", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.stdout.split() == [path, digest]
    assert tagged.write(replace(source(tmp_path, "mmstar"), folder=Path(path)), tmp_path / "t.tsv")["level_1"] == 2

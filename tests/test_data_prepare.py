"""``synergy data prepare``: what the policies let through, what is written, and what is read again."""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sources
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from published import picture
from test_strategies import config

from synergy import paths
from synergy.config import Config
from synergy.config import Source as Given
from synergy.data import checks, readers, records, verb, writers
from synergy.data.readers import Source, pictures
from synergy.data.records import Record
from synergy.data.writers import Turn
from synergy.errors import UserError
from synergy.lab import BASE
from synergy.report import style

LAB = {"question": "How many?", "answer": "3", "trace": sources.TRACE}


composed = functools.cache(config)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 50)


def prepared(tmp_path: Path, rows: list[Any], **data: Any) -> Path:
    """The folder made from one JSONL file of rows; ids are filled in."""
    rows = [{"id": str(n), **row} if isinstance(row, dict) else row for n, row in enumerate(rows)]
    sources.jsonl(tmp_path / "in/rows.jsonl", rows)
    return verb.prepare(asked(tmp_path, [Given(name="mine", path=str(tmp_path / "in/rows.jsonl"))], **data))


def asked(tmp_path: Path, given: list[Given], **data: Any) -> Config:
    cfg = copy.deepcopy(composed("sft"))
    cfg.run.dir, cfg.data.sources, cfg.data.workers = str(tmp_path / "run"), given, 1
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


def kept(place: Path) -> list[Record]:
    return records.read(place / "records/train.jsonl")


def save(folder: Path, name: str, size: tuple[int, int] = (56, 28)) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rough = Image.frombytes("L", (8, 6), random.Random(name).randbytes(48))
    rough.resize(size, Image.Resampling.BICUBIC).convert("RGB").save(folder / name)
    return name


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "row": ({"question": ""}, "question"),
    "id": ({"id": "0"}, "id"),
    "image": ({"images": ["cut.png"]}, "images"),
    "unsafe": ({"images": ["../out.png"]}, "images"),
    "small": ({"images": ["small.png"]}, "images"),
    "marks": ({"question": "Is <image> in <image>?", "images": ["good.png"]}, "question"),
    "answer": ({"answer": "{3"}, "answer"),
    "trace": ({"answer": "4"}, "trace"),
    "response": ({"trace": sources.TRACE.replace("One", "One, " * 300)}, "trace"),
    "prompt": ({"question": "How many? " * 300, "trace": None}, "question"),
}


@pytest.fixture()
def pictured(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    save(folder, "good.png")
    save(folder, "small.png", (20, 56))
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:500])
    (tmp_path / "out.png").write_bytes((folder / "good.png").read_bytes())
    return tmp_path


@pytest.mark.parametrize("check", BAD)
def test_each_check_fails_drops_or_repairs(pictured: Path, check: str) -> None:
    row, column = BAD[check]
    rows = [LAB, {**LAB, **row}, LAB]
    with pytest.raises(UserError) as error:
        prepared(pictured, rows)
    told = str(error.value)
    assert f"{check}: 1 rows, first mine: rows.jsonl:2, column {column}" in told and f"data.checks.{check}=drop" in told
    home = pictured / "run/data"
    (refused,) = home.glob("*-refused")
    assert (refused / "report/report.html").exists() and not list(home.glob("*/records")), "a report and nothing else"
    dropped = prepared(pictured, rows, checks={check: "drop"})
    assert [r.id for r in kept(dropped)] == ["0", "2"]
    listed = json.loads((dropped / "report/problems.jsonl").read_text())
    assert (listed["check"], listed["outcome"], listed["row"]) == (check, "dropped", "rows.jsonl:2")
    mended = kept(prepared(pictured, rows, checks={check: "repair"}))
    assert len(mended) == 2 + (check in ("id", "small", "marks", "answer", "trace", "response"))


def test_repairs_mend_what_they_say(pictured: Path) -> None:
    names = ("id", "small", "marks", "answer", "trace", "response")
    place = prepared(
        pictured, [LAB, *({**LAB, **BAD[name][0]} for name in names)], checks=dict.fromkeys(names, "repair")
    )
    found = dict(zip(names, kept(place)[1:], strict=True))
    assert found["id"].id == "mine:0" and found["answer"].answer == "3"
    assert found["marks"].question == "Is   in  ?" and found["trace"].trace is found["response"].trace is None
    with Image.open(place / "records" / found["small"].images[0]) as image:
        assert image.size == (28, 78)
    rows = json.loads((place / "llamafactory/train.json").read_text())
    assert [row["messages"][0]["content"].count("<image>") for row in rows] == [len(row["images"]) for row in rows]


def test_the_other_pictures_of_a_row_stay_as_they_are(pictured: Path) -> None:
    row = {**LAB, "images": ["small.png", "good.png", "small.png"]}
    (record,) = kept(prepared(pictured, [row], checks={"small": "repair"}))
    assert len(record.images) == 3 and record.images[0] == record.images[2] != record.images[1]


def test_a_validation_split_has_repaired_pictures_too(pictured: Path) -> None:
    given = []
    for name, into in (("t", "train"), ("v", "validation")):
        rows = [{**LAB, "id": f"{name}0"}, {**LAB, "id": f"{name}1", "question": f"{name}?", "images": ["small.png"]}]
        file = sources.jsonl(pictured / f"in/{name}.jsonl", rows)
        given.append(Given(name=name, path=str(file), into=into))
    place = verb.prepare(asked(pictured, given, checks={"small": "repair", "overlap": "drop"}))
    assert len(records.read(place / "records/val.jsonl")) == 2


def test_rows_that_nothing_can_be_held_against_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = sources.jsonl(tmp_path / "test.jsonl", [LAB, {**LAB, "images": ["gone.png"]}, {"question": "?"}])
    prepared(tmp_path, [{**LAB, "question": "Another?"}], against=[str(held)])
    assert "not held against 2 of the 3 rows of test (number 2 first): each needs" in capsys.readouterr().out


def test_overlap_is_found_by_words_and_by_pictures_together(tmp_path: Path) -> None:
    save(tmp_path / "in", "a.png", (300, 200))
    save(tmp_path / "in", "b.png", (300, 200))
    with Image.open(tmp_path / "in/a.png") as image:
        image.resize((240, 160)).save(tmp_path / "in/again.jpg", quality=70)  # the same to the eye alone
    bench = [
        Record("q1", "How many dots?", "3", ("a.png",)),
        Record("q2", "What is 1 + 2?", "3"),
    ]
    writers.vlmevalkit(tmp_path / "bench.tsv", bench, tmp_path / "in")
    rows = [
        {**LAB, "question": "how many dots", "images": ["again.jpg"]},
        {**LAB, "question": "How many dots?", "images": ["b.png"]},
        {**LAB, "question": "Which dot?", "images": ["again.jpg"]},
        {**LAB, "question": "What is 1+2"},
        {**LAB, "question": "What is 1-2"},
    ]
    against = [str(tmp_path / "bench.tsv")]
    with pytest.raises(UserError, match=r"overlap: 2 rows, first .*rows.jsonl:1.*asked by bench q1 too"):
        prepared(tmp_path, rows, against=against)
    place = prepared(tmp_path, rows, against=against, checks={"overlap": "drop", "overlap_image": "drop"})
    assert [r.id for r in kept(place)] == ["1", "4"]


def test_a_new_source_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save(tmp_path / "in", "a.png")
    first = sources.jsonl(tmp_path / "in/a.jsonl", [{**LAB, "id": "a", "images": [image]}])
    second = sources.jsonl(tmp_path / "in/b.jsonl", [{**LAB, "id": "b"}])
    one, two = Given(name="one", path=str(first)), Given(name="two", path=str(second))
    place = verb.prepare(asked(tmp_path, [one]))
    assert "one: read" in capsys.readouterr().out
    assert verb.prepare(asked(tmp_path, [one])) == place and f"reused: {place}" in capsys.readouterr().out
    both = verb.prepare(asked(tmp_path, [one, two]))
    told = capsys.readouterr().out
    assert "one: reused" in told and "two: read" in told and both != place
    assert [r.source for r in kept(both)] == ["one", "two"]
    verb.prepare(asked(tmp_path, [one, two], checks={"answer": "drop"}))
    assert "read" not in capsys.readouterr().out.replace("reused", ""), "a policy reads nothing again"
    before = kept(both)[0].images
    save(tmp_path / "in", "a.png", (84, 28))
    assert kept(verb.prepare(asked(tmp_path, [one, two])))[0].images != before
    told = capsys.readouterr().out
    assert "one: read" in told and "two: reused" in told, "an image that rows name has changed"


def test_a_stage_trains_on_what_was_prepared(tmp_path: Path) -> None:
    from synergy.data import prepare as program
    from synergy.lab import digits

    digits.write(tmp_path / "lab", train=12, val=4, bench=2)
    given = [
        Given(name="lab", path=str(tmp_path / "lab/train.jsonl")),
        Given(name="val", path=str(tmp_path / "lab/val.jsonl"), into="validation"),
        Given(name="bench", path=str(tmp_path / "lab/bench_open.jsonl"), into="benchmark"),
    ]
    place = verb.prepare(asked(tmp_path, given))
    spec = {"source": "folder", "inputs_source": place / "records", "base": BASE, "train": "train.jsonl", "limit": None}
    spec |= {"validation": "val.jsonl", "instruction": "Think.", "cutoff_len": 256}
    figures = program.train(spec, tmp_path / "stage")
    assert (figures["train"]["records"], figures["validation"]["traces"]) == (12, 4)
    assert len(records.read(place / "records/bench.jsonl")) == 2 and (place / "vlmevalkit/bench.tsv").exists()


def test_processes_write_what_one_writes(tmp_path: Path) -> None:
    rows = [
        {"id": f"k{n}", "question": "?", "answer": "3", "image": {"bytes": picture(n), "path": ""}} for n in range(9)
    ]
    given = [Given(name="k", path=str(sources.parquet(tmp_path / "in/train.parquet", rows)))]
    found = []
    for workers in (1, 2):
        cfg = asked(tmp_path / str(workers), given, workers=workers)
        found.append((verb.prepare(cfg) / "records/train.jsonl").read_bytes())
    assert found[0] == found[1] and found[0].count(b"\n") == 9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checks": {"answers": "drop"}}, "data.checks.answers: no such check; there are row, id"),
        ({"checks": {"answer": "skip"}}, "one of fail, drop, repair"),
        ({"sources": []}, "data.sources is empty"),
        ({"sources": [Given(name="a b", path="/")]}, "a name of letters"),
        ({"sources": [Given(name="a", path="/nowhere")]}, "no such file or folder, and not a hub name"),
        ({"sources": [Given(name="a", path="simplescaling/s1K")]}, "its revision to its 40-digit commit"),
        ({"sources": [Given(name="a", path="/", layout="s2")]}, "layout=s2 is one of columns"),
        ({"sources": [Given(name="a", path="/", media="/nowhere")]}, "no such folder or zip file"),
        ({"against": ["/nowhere.tsv"]}, "data.against: /nowhere.tsv"),
    ],
)
def test_a_wrong_setting_is_one_message(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = sources.jsonl(tmp_path / "a.jsonl", [LAB])
    cfg = asked(tmp_path, change.pop("sources", [Given(name="a", path=str(path))]), **change)
    with pytest.raises(UserError) as error:
        verb.prepare(cfg)
    assert told in str(error.value)


def test_a_data_set_of_the_hub_is_read_offline_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    sources.s1_1(tmp_path / f"hub/datasets--simplescaling--s1K-1.1/snapshots/{commit}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = Given(name="s1", path="simplescaling/s1K-1.1", revision=commit, layout="s1.1")
    place = verb.prepare(asked(tmp_path, [given], checks={"id": "repair"}))
    assert len(kept(place)) == 3
    given.revision = "b" * 40
    with pytest.raises(UserError, match="download failed"):
        verb.prepare(asked(tmp_path, [given]))


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
made = st.builds(
    Record,
    id=plain,
    question=plain,
    answer=plain,
    images=st.lists(st.integers(0, 2), max_size=2).map(tuple),
    choices=st.none() | st.dictionaries(st.sampled_from("ABCD"), plain, min_size=1),
    answer_type=st.none() | st.just("text"),
    trace=plain,
    short=st.none() | plain,
    kind=plain | st.just(""),
    steps=st.integers(0, 9),
    level=st.none() | st.integers(1, 5),
    passes=st.none() | st.integers(0, 16),
    source=plain | st.just(""),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(made, min_size=1, max_size=3, unique_by=lambda r: r.id))
def test_a_round_trip_through_any_format_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, found: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    names = []
    for seed in range(3):
        seen = pictures.look(picture(seed))
        pictures.keep(picture(seed), seen, folder)
        names.append(seen.name)
    found = [Record(**{**vars(r), "images": tuple(names[int(i)] for i in r.images)}) for r in found]
    writers.llamafactory(folder / "lf", {"train": [(r, str(r.trace), "Think.") for r in found]}, lossless=True)
    writers.verl(folder / "train.parquet", map(Turn, found), folder, "Think.", lossless=True)
    writers.vlmevalkit(folder / "bench.tsv", found, folder, lossless=True)
    for path, layout in (("lf/train.json", "written"), ("train.parquet", "written"), ("bench.tsv", "vlmevalkit")):
        assert _back(folder / path, layout, folder) == found, path


def _back(path: Path, layout: str, media: Path) -> list[Record]:
    source = Source("", path, layout, media=media)
    back = []
    for chunk in readers.chunks(source):
        for draft in readers.drafts(source, chunk):
            assert draft.record is not None and not draft.problems, draft.problems
            images = tuple(pictures.look(pictures.data(cell, draft.media)[0]).name for cell in draft.images)
            back.append(Record(**{**vars(draft.record), "images": images}))
    return back


def test_the_frameworks_read_what_was_written(tmp_path: Path) -> None:
    """datasets, through which LLaMA-Factory and verl load their files, and pandas, through which VLMEvalKit does."""
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    image = save(tmp_path / "in", "a.png")
    rows = [{**LAB, "images": [image]}, {**LAB, "choices": {"A": "3", "B": "4"}, "answer": "A", "trace": None}]
    place = prepared(tmp_path, rows, checks={"trace": "drop"})
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=str(place / "llamafactory/train.json"), cache_dir=cache)["train"]
    assert loaded[0]["messages"][0]["content"].startswith("<image>How many?") and len(loaded) == 1
    loaded = datasets.load_dataset("parquet", data_files=str(place / "verl/train-*.parquet"), cache_dir=cache)["train"]
    assert loaded[0]["images"][0]["bytes"] == (tmp_path / "in/a.png").read_bytes(), "bytes as they were"
    assert [row["extra_info"]["id"] for row in loaded] == ["0", "1"] and loaded[1]["images"] == []
    writers.vlmevalkit(tmp_path / "t.tsv", kept(place), place / "records", lossless=True)
    assert list(pandas.read_csv(tmp_path / "t.tsv", sep="\t")["answer"]) == ["3", "A"]


def test_row_groups_suit_streaming(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "big.png").write_bytes(bytes(1 << 20))
    writers.verl(
        tmp_path / "a.parquet", (Turn(Record(str(n), "?", "3", ("big.png",))) for n in range(70)), tmp_path, ""
    )
    told = pq.read_metadata(tmp_path / "a.parquet")
    assert told.num_rows == 70 and [told.row_group(i).num_rows for i in range(told.num_row_groups)] == [33, 33, 4]


def test_the_command_line_of_the_help_works(tmp_path: Path) -> None:
    path = sources.jsonl(tmp_path / "rows.jsonl", [{**LAB, "id": "a"}, {**LAB, "id": "b", "answer": "4"}])
    words = [f"data.sources=[{{name: mine, path: {path}}}]", f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "synergy.data", "prepare", *words]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    assert refused.returncode == 2 and "data.checks.trace=drop (or repair) lets the others pass" in refused.stderr
    done = subprocess.run([*command, "data.checks.trace=drop"], capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.rpartition("data.source=")[2].strip())
    assert [r.id for r in records.read(place / "train.jsonl")] == ["a"]
    wrong = subprocess.run([*command, "data.checks.traces=drop"], capture_output=True, text=True, cwd=paths.ROOT)
    assert wrong.returncode == 2 and "traces" in wrong.stderr


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["synergy data", "prepare", "--help"])
    assert verb.main() == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("data.sources=[", "s1.1", "overlap_image", "media_dir"))
    monkeypatch.setattr(sys, "argv", ["synergy data", "cook"])
    assert verb.main() == 2


def test_visual_tokens_count_against_the_limits(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.effect_noise((560, 560), 9).save(out, "JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(out.getvalue())
    assert checks.grid(BASE).tokens(560, 560) == 128
    row = {**LAB, "question": "How many? " * 20, "trace": None}
    prepared(tmp_path, [row])
    with pytest.raises(UserError, match="prompt: 1 rows"):
        prepared(tmp_path, [{**row, "images": ["a.jpg"]}])

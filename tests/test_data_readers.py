"""Readers: each published layout, each way to keep an image, and files that are broken or out to do harm."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sources
from published import picture

from synergy.data import readers
from synergy.data.readers import Draft, Source, pictures
from synergy.errors import UserError


def read(path: Path, layout: str = "columns", **more: Any) -> list[Draft]:
    source = Source("mine", path, layout, **more)
    return [draft for chunk in readers.chunks(source) for draft in readers.drafts(source, chunk)]


def told(drafts: list[Draft]) -> list[tuple[str, str, str]]:
    return [(d.where, p.check, p.what) for d in drafts for p in d.problems]


def test_s1_takes_the_box_of_a_worked_solution(tmp_path: Path) -> None:
    found = read(sources.s1(tmp_path), "s1")
    assert [d.record.answer for d in found if d.record] == ["3", "3", "By induction, QED {"]
    assert found[0].record is not None
    assert found[0].record.trace == "<think>\nHm.\n</think>\nSo \\boxed{3}."
    assert found[2].where == "data/train-00000-of-00001.parquet, row 2", "rows are counted over row groups"


def test_s1_1_takes_deepseeks_columns(tmp_path: Path) -> None:
    record = read(sources.s1_1(tmp_path), "s1.1")[0].record
    assert record is not None and record.trace == "<think>\nWait.\n</think>\n\\boxed{3}" and record.source == "mine"


def test_mm_eureka_has_no_blank_pictures(tmp_path: Path) -> None:
    found = read(sources.mm_eureka(tmp_path), "mm_eureka")
    assert [(d.record.id, d.record.question, len(d.images)) for d in found if d.record] == [
        ("0", "Angle 0?", 1),
        ("1", "Angle 1?", 0),
    ]
    assert pictures.data(found[0].images[0], found[0].media)[0] == picture(1)


def test_mmk12_reads_one_split_and_its_bytes(tmp_path: Path) -> None:
    found = read(sources.mmk12(tmp_path), "mmk12")
    assert [d.record.id for d in found if d.record] == ["k0", "k1"]
    assert pictures.data(found[1].images[0], tmp_path) == (picture(1), None)
    assert found[0].record is not None and found[0].record.question == "How long?" and not found[0].problems
    assert len(read(tmp_path, "mmk12", split="test")) == 1


@pytest.mark.parametrize("layout", ["sharegpt", "eureka_distill"])
def test_sharegpt_takes_the_answer_from_the_box(tmp_path: Path, layout: str) -> None:
    found = read(sources.sharegpt(tmp_path), layout)
    assert [d.record.answer for d in found if d.record] == ["3"] * 3
    assert found[0].record is not None and found[0].record.trace == sources.TRACE and found[0].images == ("img/0.png",)


def test_wrong_roles_are_told_with_file_row_and_column(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}]
    path = sources.jsonl(tmp_path / "t.jsonl", [{"messages": turns}, {"messages": turns * 2}])
    found = read(path, "sharegpt")
    assert [(d.where, p.check, p.column) for d in found for p in d.problems] == [
        ("t.jsonl:1", "roles", "messages"),
        ("t.jsonl:2", "roles", "messages"),
    ]


def test_a_column_map_in_every_format(tmp_path: Path) -> None:
    row = {"key": "7", "problem": "How many?", "gold": "3", "opts": '["1", "3"]', "why": sources.TRACE, "hard": "L4"}
    columns = {"id": "key", "question": "problem", "answer": "gold", "choices": "opts", "trace": "why", "level": "hard"}
    sources.jsonl(tmp_path / "a.jsonl", [row])
    sources.parquet(tmp_path / "a.parquet", [row])
    (tmp_path / "a.json").write_text(json.dumps([row]))
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        cells = ['"' + text.replace('"', '""') + '"' for text in row.values()]
        (tmp_path / f"a.{suffix}").write_text(mark.join(row) + "\n" + mark.join(cells) + "\n")
    found = [
        read(tmp_path / f"a.{suffix}", columns=columns)[0] for suffix in ("jsonl", "parquet", "json", "csv", "tsv")
    ]
    assert all(draft.record == found[0].record and not draft.problems for draft in found)
    record = found[0].record
    assert record is not None and (record.id, record.level, record.choices) == ("7", 4, {"A": "1", "B": "3"})


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"question": "?", "answer": "3", "image": {"bytes": picture(3), "path": None}}])
    made.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    (draft,) = read(tmp_path / "saved")
    assert pictures.data(draft.images[0], tmp_path)[0] == picture(3), "not decoded and encoded again"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{broken", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"question": "?"}', "no column 'answer'"),
        ('{"question": 3, "answer": "1"}', "its question is 3"),
        ('{"question": "?", "answer": "1", "level": "hard"}', "not a count"),
        ('{"question": "?", "answer": "1", "choices": "x y"}', "no list"),
        ('{"question": "?", "answer": "1", "trace": 3}', "trace is int"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_is_told_and_the_others_are_read(tmp_path: Path, line: str, what: str) -> None:
    good = {"question": "?", "answer": "3"}
    found = read(sources.jsonl(tmp_path / "a.jsonl", [good, line, good]))
    assert [(where, check) for where, check, _ in told(found)] == [("a.jsonl:2", "row")]
    assert what in told(found)[0][2]
    assert [d.record is not None for d in found] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", '[{"a": 1}, {"a"', "a.json, row 1: not JSON"),
        ("a.json", '[{"a": 1}, ', "a.json, row 1: the file ends here"),
        ("a.json", '{"a": 1}', "not a JSON array"),
        ("a.csv", "a,a\n1,2\n", "names a column twice"),
        ("a.csv", 'a,b\n"1,2\n', "not a table"),
        ("a.parquet", "no parquet", "can't be read as parquet"),
        ("a.txt", "", "rows are read from .parquet"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_ends_it(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert what in str(error.value) and name in str(error.value)


def test_rows_of_a_table_have_as_many_fields_as_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n?,3\n?\n?,3,4\n")
    assert told(read(tmp_path / "a.csv")) == [
        ("a.csv:3", "row", "has 1 fields, the header 2"),
        ("a.csv:4", "row", "has 3 fields, the header 2"),
    ]


def test_a_column_without_a_name_is_one_of_the_fields(tmp_path: Path) -> None:
    """As pandas writes its index."""
    (tmp_path / "a.csv").write_text(",question,answer\n0,?,3\n1,?\n")
    assert told(read(tmp_path / "a.csv")) == [("a.csv:3", "row", "has 2 fields, the header 3")]


def test_a_long_json_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [{"question": "é" * (300_000 if n == 5 else 3_000), "answer": str(n)} for n in range(900)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [d.record.answer for d in read(tmp_path / "a.json") if d.record] == [str(n) for n in range(900)]


def test_a_split_that_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file of the split 'val'.*test-00000"):
        read(sources.mmk12(tmp_path), "mmk12", split="val")


def test_images_of_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("a/1.png", picture(1))
    assert pictures.data("a/1.png", tmp_path / "i.zip") == (picture(1), tmp_path / "i.zip")
    with pytest.raises(pictures.Unreadable, match="no member"):
        pictures.data("../1.png", tmp_path / "i.zip")
    with pytest.raises(pictures.Unsafe, match="zip bomb"):
        pictures.data("0.png", sources.zip_bomb(tmp_path / "b.zip"))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "file:///etc/hostname", "link.png", "https://x.org/1.png"]
)
def test_nothing_outside_the_media_folder_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture(0))
    (tmp_path / "media").mkdir()
    (tmp_path / "media/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(pictures.Unsafe):
        pictures.data(name, tmp_path / "media")


def test_images_of_the_hubs_cache_are_links_to_its_blobs(tmp_path: Path) -> None:
    media = tmp_path / "datasets--a--b/snapshots/c0"
    for folder in (media, tmp_path / "datasets--a--b/blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "datasets--a--b/blobs/5f").write_bytes(picture(1))
    (media / "1.png").symlink_to("../../blobs/5f")
    for name in ("1.png", "./x/../1.png", str(media / "1.png"), f"file://{media}/1.png"):
        assert pictures.data(name, media)[0] == picture(1)


def test_bombs_and_absurd_sizes_are_refused_unopened(tmp_path: Path) -> None:
    bomb = sources.pixel_bomb(tmp_path / "bomb.png")
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(pictures.Unsafe, match=r"pixels|bomb"):
        pictures.look(bomb.read_bytes())
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(pictures.MOST_BYTES + 1)
    with pytest.raises(pictures.Unsafe, match="MiB"):
        pictures.data("huge.png", tmp_path)


@pytest.mark.parametrize("data", [b"", b"no image", picture(0)[:-200], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_told(data: bytes) -> None:
    with pytest.raises(pictures.Unreadable):
        pictures.look(data)


def test_a_truncated_photograph_is_told_though_it_is_decoded_small() -> None:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((448, 448), 80).save(out, "JPEG")
    seen = pictures.look(out.getvalue())
    assert (seen.width, seen.height) == (448, 448)
    with pytest.raises(pictures.Unreadable, match="truncated"):
        pictures.look(out.getvalue()[:-3000])

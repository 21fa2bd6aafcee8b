"""``synergy data prepare`` again: what is linked, what is looked at anew, and what may be cleaned away."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sources
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from published import picture
from test_data_prepare import LAB, asked, coarse, kept, prepared, save

from synergy import clean
from synergy.config import Benchmark
from synergy.config import Source as Given
from synergy.data import checks, overlap, records, verb
from synergy.data.readers import pictures
from synergy.data.tokens import Counter
from synergy.errors import UserError
from synergy.lab import BASE

__all__ = ["coarse"]


def two(tmp_path: Path) -> list[Given]:
    for name in "ab":
        images = [save(tmp_path / "in", f"{name}{n}.png") for n in range(3)]
        rows = [{**LAB, "id": f"{name}{n}", "images": [image]} for n, image in enumerate(images)]
        sources.jsonl(tmp_path / f"in/{name}.jsonl", rows)
    return [Given(name=name, path=str(tmp_path / f"in/{name}.jsonl")) for name in "ab"]


def test_a_new_source_writes_nothing_of_the_others_again(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    one = verb.prepare(asked(tmp_path, [first]))
    both = verb.prepare(asked(tmp_path, [first, second]))
    for file in (*one.glob("verl/*.parquet"), *one.glob("records/images/*/*")):
        assert (both / file.relative_to(one)).stat().st_ino == file.stat().st_ino, "linked"
    portions = {p.name.rpartition("-")[0] for p in (tmp_path / "run/data/portions").iterdir()}
    assert portions == {"a", "b"} and len(list((tmp_path / "run/data/portions").iterdir())) == 2
    assert [r.id for r in kept(both)] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    rows = json.loads((both / "llamafactory/train.json").read_text())
    assert [json.loads(row["record"])["id"] for row in rows] == [r.id for r in kept(both)]


def test_ids_that_another_source_took_count(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    rows = [{**LAB, "id": "a1"}, {**LAB, "id": "b:a1"}, {**LAB, "id": "x"}]
    sources.jsonl(tmp_path / "in/b.jsonl", rows)
    place = verb.prepare(asked(tmp_path, [first, second], checks={"id": "repair"}))
    assert [r.id for r in kept(place)] == ["a0", "a1", "a2", "b:a1", "b:b:a1", "x"]
    assert [r.id for r in kept(verb.prepare(asked(tmp_path, [second])))] == ["a1", "b:a1", "x"]


@pytest.mark.parametrize("damage", ["records/train.jsonl", "verl/train-a-00000.parquet", "image", "gone"])
def test_prepared_data_that_were_changed_are_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    first, _ = two(tmp_path)
    place = verb.prepare(asked(tmp_path, [first]))
    before = (place / "records/train.jsonl").read_bytes()
    image = next(place.glob("records/images/*/*"))
    if damage == "gone":
        image.unlink()
    elif damage == "image":
        image.unlink()
        image.write_bytes(picture(9))
    else:
        file = place / damage
        text = file.read_bytes()
        file.write_bytes(text[:9] + bytes([text[9] ^ 1]) + text[10:])
    capsys.readouterr()
    assert verb.prepare(asked(tmp_path, [first])) == place
    assert "made anew, since" in capsys.readouterr().out
    assert (place / "records/train.jsonl").read_bytes() == before
    assert verb.prepare(asked(tmp_path, [first])) == place and "reused:" in capsys.readouterr().out


def test_an_image_changed_where_it_is_kept_is_told(tmp_path: Path) -> None:
    first, _ = two(tmp_path)
    place = verb.prepare(asked(tmp_path, [first]))
    image = next(place.glob("records/images/*/*"))  # the same file in the part, by its link
    image.write_bytes(picture(9))
    with pytest.raises(UserError, match="was changed since it was read"):
        verb.prepare(asked(tmp_path, [first], checks={"answer": "drop"}))


def test_rows_changed_where_they_are_kept_are_read_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = two(tmp_path)
    verb.prepare(asked(tmp_path, [first]))
    (rows,) = (tmp_path / "run/data/parts").glob("*/rows.jsonl")
    rows.write_text(rows.read_text().replace("How many?", "How much?"))
    capsys.readouterr()
    place = verb.prepare(asked(tmp_path, [first], checks={"answer": "drop"}))
    assert "a: read" in capsys.readouterr().out and kept(place)[0].question == "How many?"


def test_validation_questions_are_not_trained_on(tmp_path: Path) -> None:
    a, b = save(tmp_path / "in", "a.png", (300, 200)), save(tmp_path / "in", "b.png", (300, 200))
    sources.jsonl(
        tmp_path / "in/val.jsonl", [{**LAB, "id": "v1", "images": [a]}, {**LAB, "id": "v2", "question": "2+2?"}]
    )
    with Image.open(tmp_path / "in/a.png") as image:
        image.resize((240, 160)).save(tmp_path / "in/again.jpg", quality=70)
    rows = [
        {**LAB, "id": "0", "question": "How many", "images": ["again.jpg"]},
        {**LAB, "id": "1", "question": "Another one?", "images": [a]},
        {**LAB, "id": "2", "images": [b]},
        {**LAB, "id": "3", "question": "2 + 2"},
    ]
    path = sources.jsonl(tmp_path / "in/rows.jsonl", rows)
    both = [Given(name="t", path=str(path)), Given(name="v", path=str(tmp_path / "in/val.jsonl"), into="validation")]
    with pytest.raises(UserError, match=r"overlap: 2 rows, first t: rows.jsonl:1, .*is asked by v v1 too"):
        verb.prepare(asked(tmp_path, both))
    place = verb.prepare(asked(tmp_path, both, checks={"overlap": "drop"}))
    assert [r.id for r in kept(place)] == ["1", "2"], "a figure that both splits ask about is no overlap"


def test_the_benchmarks_of_the_config_are_held_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in", "a.png", (300, 200))
    row = {
        "index": "1",
        "question": "How many?\nOptions: A: 1, B: 2",
        "answer": "A",
        "image": {"bytes": picture(1), "path": ""},
    }
    sources.parquet(tmp_path / "star/val.parquet", [row])
    sources.jsonl(tmp_path / "mine/own.jsonl", [{"id": "o", "question": "And which?", "answer": "3"}])
    path = sources.jsonl(tmp_path / "in/rows.jsonl", [{**LAB, "id": "x", "question": "And which?"}])
    (tmp_path / "in/one.png").write_bytes(picture(1))
    sources.jsonl(
        path,
        [{**LAB, "id": "x", "question": "And which?"}, {**LAB, "id": "y", "images": ["one.png"]}, LAB | {"id": "z"}],
    )
    cfg = asked(tmp_path, [Given(name="t", path=str(path))], checks={"overlap": "drop", "overlap_image": "drop"})
    cfg.evaluate.source = str(tmp_path / "mine")
    cfg.evaluate.benchmarks = [
        Benchmark(name="star", kind="mmstar", tagged=str(tmp_path / "star")),
        Benchmark(name="own", records="own.jsonl"),
        Benchmark(name="verse", kind="mathverse", tagged="JierunChen/verse"),
    ]
    place = verb.prepare(cfg)
    told = capsys.readouterr().out
    assert "held against star, own" in told and "not held against verse (benchmark verse: tagged" in told
    assert [r.id for r in kept(place)] == ["z"]
    cfg.data.against = []
    assert [r.id for r in kept(verb.prepare(cfg))] == ["x", "y", "z"]


def test_clean_knows_what_was_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = two(tmp_path)
    place = verb.prepare(asked(tmp_path, [first]))
    with pytest.raises(UserError):
        prepared(tmp_path, [{**LAB, "answer": "4"}])
    home, run = tmp_path / "run/data", tmp_path / "run"
    (home / "parts/.b-7-1").mkdir()
    (home / ".abc-7").mkdir()
    clean.of_folder(run, unfinished=False, act=False)
    told = capsys.readouterr().out
    assert all(word in told for word in ("data/.abc-7", "data/parts/.b-7-1", "-refused")) and "would delete 3" in told
    clean.of_folder(run, unfinished=True, act=True)
    assert {p.name.rpartition("-")[0] for p in (home / "parts").iterdir()} == {"a"}
    assert {p.name for p in home.iterdir() if p.is_dir()} == {"parts", "portions", place.name}
    assert verb.prepare(asked(tmp_path, [first])) == place and "reused:" in capsys.readouterr().out
    with verb.FileLock(home / ".lock"), pytest.raises(UserError, match="data are prepared"):
        (home / ".abc-7").mkdir()
        clean.of_folder(run, unfinished=False, act=True)


def test_a_drawing_is_known_again_scaled_and_compressed_and_taken_for_no_other(tmp_path: Path) -> None:
    rng, marks = random.Random(3), []
    for _ in range(40):
        drawing = Image.new("RGB", (400, 300), "white")
        for _ in range(rng.randint(1, 3)):
            corners = [(rng.randint(20, 380), rng.randint(20, 280)) for _ in range(3)]
            ImageDraw.Draw(drawing).polygon(corners, outline="black", width=2)
        scale = rng.choice([0.6, 0.8, 1.25])
        other = drawing.resize((int(400 * scale), int(300 * scale)), Image.Resampling.BICUBIC)
        marks.append([pictures.perceptual(saved(drawing, "PNG")), pictures.perceptual(saved(other, "JPEG"))])
    ones, others = (overlap._bits(some) for some in zip(*marks, strict=True))
    same = ones @ others.T >= (2 * overlap.NEAR - 1) * pictures.BITS
    assert (same == np.eye(40, dtype=bool)).all()
    white, black = (pictures.perceptual(saved(Image.new("L", (99, 99), colour), "PNG")) for colour in (255, 0))
    assert not (overlap._bits([white, black]) @ overlap._bits([white, black]).T).any(), (
        "told apart by their bytes alone"
    )


def saved(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, quality=70)
    return out.getvalue()


def test_no_jpeg_passes_undecoded_that_decoding_refuses() -> None:
    """20,000 mutations by the same code: 8,301 refused by either, the same ones."""
    noise, rng, stock = np.random.default_rng(0), random.Random(1), []
    for options in (
        {},
        {"quality": 95, "subsampling": 0},
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_blocks": 4},
    ):
        for mode, shape in (("RGB", (40, 60, 3)), ("L", (40, 60)), ("CMYK", (40, 60, 4))):
            out = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, shape, np.uint8), mode).save(out, "JPEG", **options)
            stock.append(out.getvalue())
    refused = 0
    for _ in range(1500):
        data = mutated(rng, rng.choice(stock))
        quick, whole = (_verdict(data, hashed) for hashed in (False, True))
        assert quick == whole, data.hex()
        refused += whole is not None
    assert 300 < refused < 1200


def mutated(rng: random.Random, data: bytes) -> bytes:
    at, kind = rng.randrange(rng.choice([700, len(data)])), rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data[:at] + (rng.randbytes(rng.randint(1, 9)) if kind == 2 else b"") + data[at + rng.randint(0, 40) :]


def _verdict(data: bytes, hashed: bool) -> type[ValueError] | None:
    try:
        pictures.look(data, hashed)
    except ValueError as error:
        return type(error)
    return None


COUNTER = Counter(BASE)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
@example(
    ["<|im_start|>user\n<think>I'LL ſ's 12 ½ é e\u0301 한국 \u0301 \r\n\r\n  x</think><|im_end|>", "<|image_pad|>" * 9]
)
@example([" " * 300_000, "\n" * 90_000 + "a" * 90_000])
def test_tokens_are_counted_as_the_tokenizer_does(texts: list[str]) -> None:
    assert COUNTER.fast is not None
    fast = [count for text in texts if (count := COUNTER._quick(text)) is not None]
    known = [
        len(found.ids) for text in texts for found in [COUNTER.words.encode(text)] if COUNTER._quick(text) is not None
    ]
    assert fast == known
    assert COUNTER(texts) == [len(found.ids) for found in COUNTER.words.encode_batch(texts)]


def test_a_tokenizer_of_another_kind_counts_itself(tmp_path: Path) -> None:
    told: dict[str, Any] = json.loads((BASE / "tokenizer.json").read_text())
    told["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    count = Counter(tmp_path)
    assert count.fast is None and count(["One two"]) == [len(checks.tokenizer(BASE).encode("One two").ids)]


def test_benchmarks_have_a_table_each(tmp_path: Path) -> None:
    first, _ = two(tmp_path)
    first.into = "benchmark"
    place = verb.prepare(asked(tmp_path, [first]))
    assert not (place / "verl").exists() and not (place / "llamafactory").exists()
    assert (place / "vlmevalkit/a.tsv").read_text().count("\n") == 4
    assert [r.id for r in records.read(place / "records/a.jsonl")] == ["a0", "a1", "a2"]

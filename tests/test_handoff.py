"""Hand-off: names, dtypes, sidecars, and everything that must not be handed on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import NAMES, TOKENIZER, make_checkpoint, save_tensors
from hypothesis import given
from hypothesis import strategies as st

from synergy.driver import checkpoint, handoff
from synergy.errors import StageFailed, UserError
from synergy.stages.sft import runtime_name

HYBRID = ("model.visual.blocks.0.weight", "model.layers.0.weight", "model.embed_tokens.weight")


def values(folder: Path) -> dict[str, bytes]:
    return {name: b"".join(checkpoint.chunks(t)) for name, t in checkpoint.read(folder).items()}


def test_right_files_are_linked_not_copied(tmp_path: Path) -> None:
    base, made = make_checkpoint(tmp_path / "base"), make_checkpoint(tmp_path / "made", shift=1)
    (made / "tokenizer.json").write_text(TOKENIZER + "\n")
    figures = handoff.publish(made, base, base, tmp_path / "out")
    assert figures == {"tensors": 3, "changed_tensors": 3}
    assert (tmp_path / "out/model.safetensors").samefile(made / "model.safetensors")
    assert (tmp_path / "out/tokenizer.json").read_text() == TOKENIZER, "the base's tokenizer, not the framework's"


def test_hybrid_names_become_published_names_with_equal_values(tmp_path: Path) -> None:
    base, made = make_checkpoint(tmp_path / "base"), make_checkpoint(tmp_path / "made", 1, HYBRID)
    handoff.publish(made, base, base, tmp_path / "out")
    stored = {t.stored for t in checkpoint.read(tmp_path / "out").values()}
    assert stored == set(NAMES)
    assert values(tmp_path / "out") == values(made)


def test_dtype_is_the_base_models(tmp_path: Path) -> None:
    base, made = make_checkpoint(tmp_path / "base"), make_checkpoint(tmp_path / "made", shift=1)
    halves = {n: np.frombuffer(checkpoint.cast(v, "F32", "BF16"), "<u2").reshape(4, 3) for n, v in values(base).items()}
    save_tensors(base / "model.safetensors", halves, "BF16")
    handoff.publish(made, base, base, tmp_path / "out")
    assert {t.dtype for t in checkpoint.read(tmp_path / "out").values()} == {"BF16"}


@pytest.mark.parametrize("harm", ["missing", "extra", "shape", "nan", "cut", "unchanged"])
def test_harm_is_refused_and_nothing_published_over(tmp_path: Path, harm: str) -> None:
    base, made = (
        make_checkpoint(tmp_path / "base"),
        make_checkpoint(tmp_path / "made", shift=0 if harm == "unchanged" else 1),
    )
    rng = {name: np.ones((4, 3), "<f4") for name in NAMES}
    if harm == "missing":
        rng.pop(NAMES[0])
    elif harm == "extra":
        rng["model.layers.9.weight"] = np.ones((4, 3), "<f4")
    elif harm == "shape":
        rng[NAMES[0]] = np.ones((3, 4), "<f4")
    elif harm == "nan":
        rng[NAMES[1]][2, 1] = np.nan
    if harm in ("missing", "extra", "shape", "nan"):
        save_tensors(made / "model.safetensors", rng)
    elif harm == "cut":
        data = (made / "model.safetensors").read_bytes()
        (made / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises((StageFailed, UserError)):
        handoff.publish(made, base, base, tmp_path / "out")


def test_sharded_checkpoints_keep_their_index(tmp_path: Path) -> None:
    base, made = make_checkpoint(tmp_path / "base"), tmp_path / "made"
    made.mkdir()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": name for i, name in enumerate(HYBRID)}
    for file, name in shards.items():
        save_tensors(made / file, {name: np.full((4, 3), 2, "<f4")})
    index = {"metadata": {}, "weight_map": {name: file for file, name in shards.items()}}
    (made / checkpoint.INDEX).write_text(json.dumps(index))
    handoff.publish(made, base, base, tmp_path / "out")
    found = json.loads((tmp_path / "out" / checkpoint.INDEX).read_text())
    assert set(found["weight_map"]) == set(NAMES)
    assert found["metadata"]["total_size"] == 3 * 12 * 4


def test_renaming_for_resume_keeps_values_and_can_be_read_again(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint-5")
    before = values(folder)
    handoff.rename_tensors(folder, runtime_name)
    names = {t.stored for t in checkpoint.read(folder).values()}
    assert names == {
        "model.visual.blocks.0.weight",
        "model.language_model.layers.0.weight",
        "model.language_model.embed_tokens.weight",
    }
    assert values(folder) == before


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bfloat16_rounds_to_nearest(numbers: list[float]) -> None:
    exact = np.array(numbers, "<f4")
    half = checkpoint.cast(exact.tobytes(), "F32", "BF16")
    back = np.frombuffer(checkpoint.cast(half, "BF16", "F32"), "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.abs(back - exact) <= np.abs(exact) * 2.0**-8 + 1e-38
    assert bool((near | ~np.isfinite(back)).all())
    again = checkpoint.cast(checkpoint.cast(half, "BF16", "F32"), "F32", "BF16")
    assert again == half, "a value that is already bfloat16 stays what it is"

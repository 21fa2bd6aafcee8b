"""Shared pieces: tiny checkpoints and data made without torch, and the environments of the frameworks."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts the tests in the background has them ignore Ctrl-C, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no law
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def eval_python() -> str:
    """The interpreter of the evaluation environment."""
    python = os.environ.get("SYNERGY_EVAL_PYTHON") or str(ROOT / ".envs/eval/bin/python")
    if not Path(python).exists():
        pytest.fail(f"no evaluation environment: {python} is missing; run `make test`, or set SYNERGY_EVAL_PYTHON")
    return python


def save_tensors(file: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """A safetensors file, written from the format's description (bfloat16 given as uint16)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, data = 0, b""
    for name, value in tensors.items():
        raw = value.tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [offset, offset + len(raw)]}
        offset, data = offset + len(raw), data + raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


NAMES = ("visual.blocks.0.weight", "model.layers.0.weight", "model.embed_tokens.weight")


TOKENIZER = json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}, "added_tokens": [{"id": 3, "content": "<end>"}]})
"""As many tokens as the embedding of such a checkpoint has rows."""


def make_checkpoint(folder: Path, shift: float = 0.0, names: tuple[str, ...] = NAMES) -> Path:
    """A complete checkpoint folder of three small float32 tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    values = {name: (rng.normal(size=(4, 3)) + shift).astype("<f4") for name in names}
    save_tensors(folder / "model.safetensors", values)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return folder

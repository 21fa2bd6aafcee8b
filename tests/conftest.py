"""Shared pieces: tiny checkpoints and data made without torch, and the environments of the frameworks."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import hypothesis
import numpy as np
import pytest

from synergy import paths
from synergy.driver import warm
from synergy.driver.warm import Warm

# A shell that starts the tests in the background has them ignore Ctrl-C, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no law
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module")
def plugins_importable() -> Iterator[None]:
    """launch/plugins on this process's path, as verl's processes have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(paths.ROOT / "launch" / "plugins"))
        yield


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where this machine permits no hosts in them."""
    if why := hosts.refused():
        pytest.skip(f"no hosts in namespaces: {why}")


@pytest.fixture(scope="session")
def warm_server() -> Iterator[Warm]:
    """A driver's warm start, on a CPU: the interpreters of both environments with their libraries imported."""
    from test_strategies import config

    from synergy import environments

    python = environments.locate("vlmevalkit")
    if not python.exists():
        pytest.fail(f"no evaluation environment: {python} is missing; run `make test`, or set SYNERGY_EVAL_PYTHON")
    with warm.server(Path(sys.executable), config("rl").rl.env, evaluation=python) as server:
        assert server.ready(warm.PATIENCE), server.why_not()
        yield server


@pytest.fixture(scope="session")
def warm_python(warm_server: Warm) -> str:
    """A stand-in for this interpreter, in which verl starts in a third of the time."""
    return str(warm_server.folder / "python")


@pytest.fixture(scope="session")
def eval_python(warm_server: Warm) -> str:
    """A stand-in for the interpreter of the evaluation environment."""
    assert warm_server.evaluation is not None
    end = time.monotonic() + 120
    while not warm_server.evaluation.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert warm_server.evaluation.exists(), (warm_server.evaluation.parent / warm.LOG).read_text()
    return str(warm_server.evaluation)


def with_plugins(python: str, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Code in a process that finds launch/plugins and nothing else of this one's environment."""
    env = {"PYTHONPATH": str(paths.ROOT / "launch" / "plugins"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([python, "-c", code, *words], env=env, capture_output=True, text=True)


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

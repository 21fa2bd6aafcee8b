"""The ledger survives torn lines, and a key changes exactly when identity does."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy import stages
from synergy.driver import identity, ledger
from synergy.driver.ledger import Entry
from synergy.errors import UserError
from synergy.stages import Stage


def entry(key: str) -> Entry:
    return Entry(key=key, kind="sft", name="sft", output="stages/x/output", digest="d", fingerprint="f")


def test_torn_last_line_is_ignored_and_does_not_harm_the_next(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger.append(file, entry("a"))
    with file.open("a") as stream:
        stream.write('{"key": "b", "kind"')
    assert set(ledger.read(file)) == {"a"}
    ledger.append(file, entry("c"))
    assert set(ledger.read(file)) == {"a", "c"}


def test_a_line_is_written_whole_or_told(tmp_path: Path) -> None:
    """A disk that fills up takes a part of a line without a word."""
    file = tmp_path / "ledger.jsonl"
    ledger.append(file, entry("a"))
    size, limits = file.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
            ledger.append(file, entry("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    ledger.append(file, entry("c"))
    assert set(ledger.read(file)) == {"a", "c"}


def test_newest_line_of_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    ledger.append(file, entry("a"))
    ledger.append(file, dataclasses.replace(entry("a"), attempt=2))
    assert ledger.read(file)["a"].attempt == 2


def sample(**changes: object) -> Stage:
    settings = {"n": 8, "seed": 0, "sampling": {"temperature": 1.0}, "instruction": "x", "engine": {}, "env": {}}
    return Stage("passes", "sample", {**settings, **changes})


def key(stage: Stage, inputs: dict[str, str] | None = None) -> str:
    return identity.key(identity.identity(stage, inputs or {"model": "m"}, {"vllm": "1"}))


def test_golden_key() -> None:
    """A change here re-runs everybody's finished stages: raise identity.SCHEMA only knowingly."""
    parts = {
        "schema": 1,
        "kind": "sft",
        "version": 1,
        "settings": {"a": [1, 0.5, None, "é"]},
        "inputs": {},
        "packages": {},
    }
    assert identity.key(parts) == "a78fe08cbeb4b88c06b7815c8358c3ff1f33063ffb2c66aeb51fad99c658c1bc"


def test_identity_settings_and_inputs_change_the_key_and_run_time_does_not() -> None:
    assert key(sample()) == key(sample(env={"A": "1"}))
    assert key(sample()) != key(sample(n=4))
    assert key(sample()) != key(sample(), {"model": "other"})


def test_unclassified_setting_is_refused() -> None:
    with pytest.raises(UserError, match="neither identity nor run-time"):
        key(sample(novelty=1))


@pytest.mark.parametrize("name", stages.KINDS)
def test_identity_and_runtime_do_not_overlap(name: str) -> None:
    kind = stages.kind(name)
    assert not kind.IDENTITY & kind.RUNTIME


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), values), st.randoms())
def test_key_does_not_depend_on_the_order_of_fields(parts: dict[str, object], rng: object) -> None:
    items = list(parts.items())
    rng.shuffle(items)  # type: ignore[attr-defined]
    assert identity.key(parts) == identity.key(dict(items))
    assert identity.differences(parts, dict(items)) == []


def test_a_digest_that_another_schema_left_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("one")
    cache = tmp_path / "digests.json"
    monkeypatch.setattr(identity, "SCHEMA", identity.SCHEMA - 1)
    identity.remember(cache, identity.fingerprint(tmp_path / "a"), "digest of then")
    assert identity.digest(tmp_path / "a", cache) == "digest of then"
    monkeypatch.undo()
    assert identity.digest(tmp_path / "a", cache) != "digest of then"


def test_digest_follows_content_and_fingerprint_follows_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    before = identity.digest(tmp_path / "a"), identity.fingerprint(tmp_path / "a")
    (tmp_path / "a/x").write_text("2")
    assert identity.digest(tmp_path / "a") != before[0]
    assert identity.fingerprint(tmp_path / "a") != before[1]

"""What this host tells of its memory and its GPUs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from synergy import machine


def test_a_container_may_have_less_memory_than_its_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, text in enumerate(("max\n", "1000000\n", str(2**63))):
        (tmp_path / str(number)).write_text(text)
    files = [tmp_path / str(number) for number in range(4)]
    monkeypatch.setattr(machine, "CONTAINER_MEMORY", files)
    assert machine.memory() == 1_000_000
    monkeypatch.setattr(machine, "CONTAINER_MEMORY", [files[0], *files[2:]])
    assert machine.memory() > 1e8


@pytest.mark.parametrize(
    ("said", "count", "memory"), [("A, of 3, 81559\nB, 40960\n", 2, 40960 * 2**20), ("A, [N/A]\n", 1, 0), ("", 0, 0)]
)
def test_nvidia_smi_is_asked_once_for_gpus_and_the_smallest_ones_memory(
    monkeypatch: pytest.MonkeyPatch, said: str, count: int, memory: int
) -> None:
    asked = []

    def nvidia_smi(argv: list[str], **_: Any) -> Any:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0, stdout=said)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    machine.cards.cache_clear()
    assert (len(machine.gpus()), machine.gpu_memory(), len(asked)) == (count, memory, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.gpus(), machine.gpu_memory()) == ([], 0)
    machine.cards.cache_clear()


def test_a_driver_that_hangs_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "SMI_SECONDS", 0.2)
    machine.cards.cache_clear()
    assert machine.cards() == ()
    machine.cards.cache_clear()

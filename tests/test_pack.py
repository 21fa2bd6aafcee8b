"""Environments packed for a host without a network: packed from the real index, unpacked by the file that travels along."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synergy import paths

PACK = paths.ROOT / "launch" / "pack.py"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # Not what pytest's own process has on its path: the host has none of it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest list of pins, in parts of 10 kB."""
    out = tmp_path_factory.mktemp("packing") / "pack"
    made = run(PACK, out, "--pins", "tools", "--part-mb", "0.01")
    assert made.returncode == 0, made.stdout + made.stderr
    return out


def test_unpacks_to_an_environment_that_imports_and_runs(packed: Path, tmp_path: Path) -> None:
    assert len(list(packed.glob("part-*"))) > 1 and not list(packed.glob(".packing-*"))
    made = run(packed / "unpack.py", tmp_path / "envs")
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == f"export SYNERGY_ENVS={tmp_path / 'envs'}"
    python = tmp_path / "envs/tools/bin/python"
    # In its place it is a plain environment: its own package, and below it what the host has.
    code = "import uv, pytest; print(uv.__file__, pytest.__file__)"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[0].startswith(str(tmp_path)) and not shown[1].startswith(str(tmp_path))
    assert list((tmp_path / "envs").rglob("uv/__pycache__/*.pyc"))
    again = run(packed / "unpack.py", tmp_path / "envs")
    assert again.returncode and "is not empty; name another folder" in again.stderr


def test_programs_of_packages_are_there(tmp_path: Path) -> None:
    """uv's is no Python program, so this one is made by hand: the packed folder has packages, and no ``bin``."""
    spec = importlib.util.spec_from_file_location("unpack", PACK.with_name("unpack.py"))
    assert spec and spec.loader
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    packages = tmp_path / "packed"
    (packages / "told-1.0.dist-info").mkdir(parents=True)
    (packages / "told-1.0.dist-info/entry_points.txt").write_text("[console_scripts]\ntold-cli = told:Told.main\n")
    (packages / "told.py").write_text(
        "class Told:\n    @staticmethod\n    def main():\n        print('told')\n        return 3\n"
    )
    unpack.make(tmp_path / "env", packages)
    done = subprocess.run([tmp_path / "env/bin/told-cli"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "told\n")
    # The host's own too, in this interpreter: torchrun starts processes with the one that runs it.
    hosts = tmp_path / "env/bin/pytest"
    assert hosts.read_text().startswith(f"#!{tmp_path / 'env/bin/python'}\n")
    assert subprocess.run([hosts, "--version"], check=False).returncode == 0


def test_a_damaged_or_missing_part_is_named_before_anything_is_written(packed: Path, tmp_path: Path) -> None:
    carried = tmp_path / "carried"
    carried.mkdir()
    for file in packed.iterdir():
        os.symlink(file, carried / file.name)
    (carried / "part-001").unlink()
    text = bytearray((packed / "part-000").read_bytes())
    text[100] ^= 1
    (carried / "part-000").unlink()
    (carried / "part-000").write_bytes(text)
    (carried / "unpack.py").unlink()
    (carried / "unpack.py").write_text((packed / "unpack.py").read_text())
    made = run(carried / "unpack.py", tmp_path / "envs")
    assert made.returncode and "part-000, part-001; carry them again" in made.stderr
    assert not (tmp_path / "envs").exists()


def test_what_cannot_be_packed_is_told_first(packed: Path, tmp_path: Path) -> None:
    made = run(PACK, packed, "--pins", "tools")
    assert made.returncode == 2 and "is not empty; name another folder" in made.stderr
    made = run(PACK, tmp_path / "new", "--pins", "train-tpu")
    assert made.returncode == 2 and "there are no pins train-tpu" in made.stderr and "train-gpu" in made.stderr

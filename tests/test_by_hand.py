"""benchmarks/gpu/by_hand.py: a stage's own command once more, verl by its own module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from synergy.driver import process
from synergy.driver.warm import VERL
from synergy.stages import Command

GPU = Path(__file__).parents[1] / "benchmarks/gpu"


@pytest.mark.parametrize("module", [VERL, "verl.trainer.main_ppo"])
def test_verl_starts_by_itself_in_a_folder_of_its_own(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    import by_hand

    stage, plugins, out = tmp_path / "stages/rl-1", tmp_path / "plugins", tmp_path / "out"
    attempt = stage / "attempt-1"
    for folder in (attempt, plugins / "verl/trainer"):
        folder.mkdir(parents=True)
    for file in (plugins / "verl/__init__.py", plugins / "verl/trainer/__init__.py"):
        file.touch()
    (plugins / f"{VERL}.py").write_text("print('a fork')")
    (plugins / "verl/trainer/main_ppo.py").write_text("import sys; print('verl', *sys.argv[1:])")
    argv = (sys.executable, "-m", module, f"save={stage}/work", "a=b c")
    command = Command(argv, {"PYTHONPATH": str(plugins)}, attempt)
    (attempt / "command.sh").write_text(process.shell_script(command))
    by_hand.rerun(stage, attempt, out)
    assert (out / "log.txt").read_text() == f"verl save={out}/work a=b c\n"

"""`pip install .` into another folder gives the same commands: recipes, adapter and plug-ins travel with the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from synergy import paths

pytestmark = pytest.mark.skipif(not paths.CHECKOUT, reason="builds a wheel from a checkout")


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed to, by the pip of a fresh virtual environment."""
    base = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", base, cwd=paths.ROOT)
    (wheel,) = base.glob("*.whl")
    venv.create(base / "env", with_pip=True, system_site_packages=True)
    pip = [base / "env" / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, "--target", base / "target", wheel, cwd=base)
    return base / "target"


def test_the_wheel_holds_every_file_of_the_folders(target: Path) -> None:
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=paths.ROOT).splitlines()
    wanted = [file for file in tracked if (paths.ROOT / file).exists()]
    beside = [file for file in wanted if file.split("/")[0] in ("recipes", "reward_fns", "merge", "eval", "launch")]
    inside = [file for file in wanted if file.startswith("synergy/")]
    assert any(file.startswith("recipes/") for file in beside) and any(file.startswith("eval/") for file in beside)
    lacking = [file for file in beside if not (target / "synergy" / "_files" / file).exists()]
    lacking += [file for file in inside if not (target / file).exists()]
    assert lacking == []
    assert not (target / "tests").exists()


def test_the_installed_package_finds_its_files(target: Path) -> None:
    code = "import synergy.paths as p; print(p.ROOT, p.CHECKOUT, (p.ROOT / 'recipes').is_dir(), p.pythonpath())"
    shown = run(sys.executable, "-c", code, cwd=target.parent, PYTHONPATH=str(target))
    root = target / "synergy" / "_files"
    assert shown == f"{root} False True {root}{os.pathsep}{root / 'launch' / 'plugins'}"


def test_children_of_an_installed_package_import_it(target: Path) -> None:
    """With PYTHONPATH as children get it, which does not hold site-packages."""
    root = target / "synergy" / "_files"
    code = (
        "import synergy.errors, synergy.data.records, merge.compare, reward_fns; "
        "print(synergy.errors.__file__, reward_fns.__file__)"
    )
    shown = run(sys.executable, "-c", code, cwd=target.parent, PYTHONPATH=str(root))
    assert shown == f"{target / 'synergy' / 'errors.py'} {root / 'reward_fns' / '__init__.py'}"


def test_the_installed_command_runs(target: Path) -> None:
    command = target / "bin" / "synergy"
    assert "synergy.cli" in command.read_text()
    code = f"import sys, runpy; sys.argv = ['synergy', '--help']; runpy.run_path({str(command)!r}, run_name='__main__')"
    assert "plan" in run(sys.executable, "-c", code, cwd=target.parent, PYTHONPATH=str(target))


def test_every_module_and_verb_of_an_installed_package_is_found_without_the_checkout(target: Path) -> None:
    """The environment of these tests has the checkout on its path, which lent reward_fns to the installed package."""
    code = (
        f"import sys; sys.path = [{str(target)!r}, *(p for p in sys.path if p not in ('', {str(paths.ROOT)!r}))]\n"
        "import importlib, pkgutil, synergy, synergy.cli\n"
        "names = [m.name for m in pkgutil.walk_packages(synergy.__path__, 'synergy.')]\n"
        "names = [n for n in names if '__main__' not in n and '_files' not in n and 'workers' not in n]\n"
        "[importlib.import_module(name) for name in names]\n"
        "import reward_fns\n"
        "print(len(names), set(synergy.cli.VERBS) - {n.split('.')[1] for n in names}, reward_fns.__file__)"
    )
    count, missing, rewards = run(sys.executable, "-c", code, cwd=target.parent).split(maxsplit=2)
    assert int(count) > 100 and missing == "set()"
    assert rewards == str(target / "synergy" / "_files" / "reward_fns" / "__init__.py")

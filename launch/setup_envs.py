#!/usr/bin/env python3
"""Make the two Python environments from the exact pins in launch/requirements; standard library only.

    python3 launch/setup_envs.py [--cpu | --gpu] [--envs DIR]

``DIR/train`` gets the driver, LLaMA-Factory, verl, mergekit and vLLM; ``DIR/eval`` gets VLMEvalKit, whose pins clash with
Hydra's. DIR is $SYNERGY_ENVS, or .envs beside this folder's parent. A second call finds the stamps and ends at once; an
environment without its stamp (interrupted, other pins, another Python, moved folder) is made anew, mostly from uv's cache.
Exit code: 0 ready, 1 an installation failed (its own message stands above), 2 this machine or this call cannot work.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

LAUNCH = Path(__file__).resolve().parent
ROOT = LAUNCH.parent
REQUIREMENTS = LAUNCH / "requirements"
SHIM = LAUNCH / "plugins" / "torch_cpu_shim.py"
PYTHONS = ((3, 11), (3, 12))
NEED_GB = {"train-cpu": 5.5, "train-gpu": 11.5, "eval": 1.5}
"""Disk per set of pins, uv's cache and bytecode included (measured; train-gpu with eval on 2026-11-28: 11.7 GB)."""
STAMP = ".synergy-stamp"
"""In an environment, written when all of it is there."""
START = time.monotonic()


def fail(message: str, code: int = 2) -> NoReturn:
    sys.stdout.flush()
    print(f"set-up: {message}", file=sys.stderr)
    raise SystemExit(code)


def say(message: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {message}", flush=True)


# ---------------------------------------------------------------------------------------------- what the machine must have


def check_machine(version: tuple[int, ...], system: str, machine: str) -> str | None:
    """The reason why this Python or platform cannot work, or None."""
    if version[:2] not in PYTHONS:
        found = ".".join(map(str, version[:3]))
        return (
            f"Python 3.11 or 3.12 is needed, this is {found} ({sys.executable}). Install one of them (your system's "
            "python3.11, pyenv install 3.11, conda create -n py311 python=3.11) and name it: make setup PYTHON=python3.11"
        )
    if (system, machine) != ("linux", "x86_64"):
        return (
            f"the pinned builds of vLLM exist for Linux on x86-64, this is {system} on {machine}. Use WSL 2 or a Linux "
            "container or machine"
        )
    return None


def check_disk(free: dict[str, int], need_gb: float) -> str | None:
    """`free`: bytes free at each place that the installation fills (the environments, and uv's cache if elsewhere)."""
    for place, bytes_free in free.items():
        if bytes_free < need_gb * 1e9:
            return (
                f"about {need_gb:.1f} GB of free disk are needed at {place}, {bytes_free / 1e9:.1f} GB are there. Free some, "
                "or choose other places: SYNERGY_ENVS=<folder> for the environments, UV_CACHE_DIR=<folder> for the downloads"
            )
    return None


def free_space(envs: Path) -> dict[str, int]:
    """Bytes free at the environments and, where it is another file system, at uv's cache."""
    cache = os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    by_device: dict[int, tuple[str, int]] = {}
    for wanted in (envs, Path(cache).absolute()):
        there = next(place for place in (wanted, *wanted.parents) if place.exists())
        by_device.setdefault(there.stat().st_dev, (str(wanted), shutil.disk_usage(there).free))
    return dict(by_device.values())


def has_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


# ------------------------------------------------------------------------------------------------------------- stamps


def pins_hash(pins: str, folder: Path) -> str:
    """What the installed packages of an environment depend on. Paths count: an environment does not survive a move."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT} {folder}".encode())
    for file in (REQUIREMENTS / f"{pins}.txt", Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def project_hash() -> str:
    """What is ours in an environment, and is redone alone when only that changed."""
    files = [file for file in (SHIM, ROOT / "pyproject.toml") if file.exists()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def read_stamp(folder: Path) -> list[str]:
    """[pins hash, project hash], or nothing where the environment was never finished or its Python is gone."""
    file = folder / STAMP
    return file.read_text().split() if file.exists() and (folder / "bin" / "python").exists() else []


def stamp(folder: Path, pins: str) -> None:
    (folder / STAMP).write_text(f"{pins_hash(pins, folder)} {project_hash()}\n")


# ---------------------------------------------------------------------------------------------------------- pip and uv


def pip_settings(listing: str) -> dict[str, list[str]]:
    """find-links, index-url and extra-index-url of `pip config list`; the environment goes before the install section,
    that before the global one."""
    found: dict[str, list[str]] = {}
    for section in ("global", "install", ":env:"):
        for name in ("find-links", "index-url", "extra-index-url"):
            line = re.search(rf"^{re.escape(section)}\.{name}=(.+)$", listing, re.MULTILINE)
            if line:
                found[name] = str(ast.literal_eval(line.group(1))).split()
    return found


def uv_sources(settings: dict[str, list[str]], cpu: bool) -> list[dict[str, str]]:
    """Environment variables for uv, which reads no setting of pip's, in the order in which to look for torch."""
    base: dict[str, str] = {}
    if settings.get("index-url"):
        base["UV_DEFAULT_INDEX"] = settings["index-url"][0]
    if settings.get("find-links"):
        base["UV_FIND_LINKS"] = ",".join(settings["find-links"])
    sources = [base]
    if settings.get("extra-index-url"):
        # As pip does it: the best version of all indexes.
        extra = {"UV_INDEX": " ".join(settings["extra-index-url"]), "UV_INDEX_STRATEGY": "unsafe-best-match"}
        sources.append({**base, **extra})
    return [*sources, {**base, "UV_TORCH_BACKEND": "cpu"}] if cpu else sources


class Uv:
    """uv in its own small environment. The lock is inherited, so that a uv left behind by a killed set-up keeps it."""

    def __init__(self, envs: Path, lock: int) -> None:
        self.tools, self.lock = envs / "tools" / "bin", lock
        wanted = re.search(r"^uv==(\S+)$", (REQUIREMENTS / "tools.txt").read_text(), re.MULTILINE)
        if wanted and f"uv {wanted.group(1)}" not in self._output([str(self.tools / "uv"), "--version"]):
            say(f"tools: uv {wanted.group(1)}")
            if self._call([sys.executable, "-m", "venv", "--clear", str(self.tools.parent)]):
                fail("this Python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)")
            pip = [str(self.tools / "python"), "-m", "pip", "install", "-qq", "-r", str(REQUIREMENTS / "tools.txt")]
            if self._call(pip):
                fail("pip could not install uv: is the package index reachable? Then run the same command again", 1)

    @staticmethod
    def _output(command: list[str]) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout
        except OSError:
            return ""

    def _call(self, command: list[str], env: dict[str, str] | None = None) -> int:
        return subprocess.run(command, env={**(env or {}), **os.environ}, pass_fds=(self.lock,), check=False).returncode

    def __call__(self, source: dict[str, str], *arguments: str) -> int:
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        return self._call([str(self.tools / "uv"), *quiet, *arguments], source)

    def find_torch(self, requirements: dict[str, bool]) -> dict[str, dict[str, str]]:
        """Where packages come from, per torch requirement (and whether a CPU build will do): where pip looks, as long as
        that torch can be had there, or else PyTorch's own CPU index."""
        listing = self._output([sys.executable, "-m", "pip", "config", "list"])
        settings = pip_settings(listing or self._output([str(self.tools / "python"), "-m", "pip", "config", "list"]))
        return {torch: self._source_of(torch, uv_sources(settings, cpu)) for torch, cpu in requirements.items()}

    def _source_of(self, torch: str, sources: list[dict[str, str]]) -> dict[str, str]:
        probe = [str(self.tools / "uv"), "pip", "compile", "-q", "--no-deps", "--python", sys.executable, "-"]
        reason = ""
        for source in sources:
            env = {**source, **os.environ}
            tried = subprocess.run(probe, input=torch, env=env, capture_output=True, text=True, check=False)
            if tried.returncode == 0:
                say(f"{torch}: {'PyTorch CPU index' if 'UV_TORCH_BACKEND' in source else 'found where pip looks'}")
                return source
            reason = " ".join(tried.stderr.split())
        fail(f"{torch} for this Python is neither where pip looks nor on PyTorch's CPU index ({reason[-300:]})")


# ------------------------------------------------------------------------------------------------------------- building


def torch_of(pins: str) -> str:
    found = re.search(r"^torch==\S+$", (REQUIREMENTS / f"{pins}.txt").read_text(), re.MULTILINE)
    return found.group() if found else fail(f"{pins}.txt pins no torch")


def install(uv: Uv, source: dict[str, str], folder: Path, pins: str) -> None:
    file = REQUIREMENTS / f"{pins}.txt"
    say(f"{folder.name}: installing {file.read_text().count('==')} packages from {file.name}")
    if uv(source, "venv", "--clear", "--python", sys.executable, str(folder)) or uv(
        source, "pip", "install", "--no-deps", "--python", str(folder), "-r", str(file)
    ):
        fail(f"{folder.name}: uv failed, see above. What was downloaded is kept: run the same command again", 1)


def add_project(uv: Uv, folder: Path) -> None:
    """The torch shim and, in the training environment, this project itself, as an editable install without a network."""
    site = next(folder.glob("lib/python3*/site-packages"))
    shutil.copyfile(SHIM, site / SHIM.name)
    (site / f"{SHIM.stem}.pth").write_text(f"import {SHIM.stem}\n")
    if folder.name == "train" and (ROOT / "pyproject.toml").exists():
        options = ["--offline", "--no-deps", "--no-build-isolation", "--reinstall"]
        if uv({}, "pip", "install", *options, "--python", str(folder), "--editable", str(ROOT)):
            fail("train: the project itself could not be installed, see above", 1)


def start_compiling(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    """Byte-compile in the background: frameworks start many processes, and Python may be told not to write bytecode."""
    site = next(folder.glob("lib/python3*/site-packages"))
    python = [str(folder / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "-x", "site-packages/.*/tests/"]
    # Some packages ship files for other Pythons: what does not compile is not an error, and not shown. Own session: its
    # worker processes outlive it when it is killed, and are ended as a group.
    null = subprocess.DEVNULL
    return subprocess.Popen([*python, str(site)], stdout=null, stderr=null, pass_fds=(lock,), start_new_session=True)


def build(envs: Path, todo: dict[str, str], lock: int) -> None:
    """Make the environments in `todo` (name -> pins) and stamp each when all of it is there."""
    begun = envs / ".begun"
    # A second try needs little: the first one was checked, and what it took is the same space.
    need = 1.0 if begun.exists() else sum(NEED_GB[pins] for pins in todo.values())
    problem = check_disk(free_space(envs), need)
    if problem:
        fail(problem)
    say(
        f"making {' and '.join(todo)} in {envs}: some minutes, about {sum(NEED_GB[pins] for pins in todo.values()):.0f} GB"
    )
    uv = Uv(envs, lock)
    sources = uv.find_torch({torch_of(pins): pins != "train-gpu" for pins in todo.values()})
    begun.touch()
    compiling: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, pins in todo.items():
            folder = envs / name
            (folder / STAMP).unlink(missing_ok=True)
            install(uv, sources[torch_of(pins)], folder, pins)
            add_project(uv, folder)
            compiling[name] = start_compiling(folder, lock)
            say(f"{name}: installed; compiling bytecode")
        for name, process in compiling.items():
            process.wait()
            stamp(envs / name, todo[name])
            say(f"{name}: ready")
    finally:
        for process in compiling.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    begun.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make Synergy's Python environments from the pins in launch/requirements."
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cpu", action="store_true", help="install CPU builds even where there is a GPU")
    kind.add_argument("--gpu", action="store_true", help="install CUDA builds even where nvidia-smi shows no GPU")
    default = os.environ.get("SYNERGY_ENVS") or ROOT / ".envs"
    parser.add_argument("--envs", type=Path, default=default, help="folder for the environments (default: %(default)s)")
    arguments = parser.parse_args()
    problem = check_machine(sys.version_info[:3], sys.platform, platform.machine())
    if problem:
        fail(problem)
    envs = Path(os.path.abspath(arguments.envs))
    try:
        envs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"the folder for the environments cannot be made: {error}. Name another one: SYNERGY_ENVS=<folder>")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with open(envs / ".lock", "w") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up is at work in {envs}; waiting for it")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        gpu = arguments.gpu or (not arguments.cpu and has_gpu())
        wanted = {"train": "train-gpu" if gpu else "train-cpu", "eval": "eval"}
        stamps = {name: read_stamp(envs / name) for name in wanted}
        todo = {name: pins for name, pins in wanted.items() if stamps[name][:1] != [pins_hash(pins, envs / name)]}
        if todo:
            build(envs, todo, lock_file.fileno())
        for name, pins in wanted.items():
            if name not in todo and stamps[name][1:] != [project_hash()]:
                add_project(Uv(envs, lock_file.fileno()), envs / name)
                stamp(envs / name, pins)
                say(f"{name}: shim and project renewed")
    say(f"environments ready in {envs}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to finish it", 130)

#!/usr/bin/env python3
"""Make the environments from what launch/pack.py packed; standard library only, no network.

    python3 unpack.py ENVS        # in the folder with the parts; then: export SYNERGY_ENVS=ENVS

ENVS/train and ENVS/eval are virtual environments of this very Python. What they lack (torch) they take from the packages of
this Python, which come last on their path. A part that is missing or damaged is named before anything is written.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import io
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
START = time.monotonic()


def say(message: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {message}", flush=True)


def parts(folder: Path) -> list[Path]:
    """The parts in order, each with the right sum. Exits with a message that names those which are not."""
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise SystemExit(f"unpack: {sums} is not there: packing did not finish, or the file was not carried along")
    found, wrong = [], []
    for line in sums.read_text().splitlines():
        digest, name = line.split()
        part = folder / name
        if not part.exists() or hashlib.sha256(part.read_bytes()).hexdigest() != digest:
            wrong.append(name)
        found.append(part)
    if wrong:
        raise SystemExit(f"unpack: missing or damaged in {folder}: {', '.join(wrong)}; carry them again")
    return found


class Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, files: list[Path]) -> None:
        self._pieces: Iterator[bytes] = (file.read_bytes() for file in files)
        self._now = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._now:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._now = memoryview(piece)
        count = min(len(buffer), len(self._now))
        buffer[:count] = self._now[:count]
        self._now = self._now[count:]
        return count


def scripts(folder: Path, packages: Path) -> None:
    """The programs that packages bring (``llamafactory-cli``), as pip writes them, for the interpreter of ``folder``."""
    for file in packages.glob("*.dist-info/entry_points.txt"):
        told = configparser.ConfigParser(delimiters=("=",))
        told.optionxform = str  # type: ignore[assignment,method-assign]
        told.read_string(file.read_text())
        for name, place in told["console_scripts"].items() if told.has_section("console_scripts") else ():
            module, _, function = place.split("[")[0].strip().partition(":")
            program = folder / "bin" / name
            program.write_text(
                f"#!{folder / 'bin' / 'python'}\nimport sys\n\nfrom {module} import {function.split('.')[0]}\n\n"
                f"sys.exit({function}())\n"
            )
            program.chmod(0o755)


def make(folder: Path, packages: Path) -> None:
    """A virtual environment of this Python around unpacked packages."""
    venv.create(folder, with_pip=False, symlinks=True, system_site_packages=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    site.rmdir()
    packages.rename(site)
    # A venv made by a venv's Python sees only the packages of that one's base; this names its own. They come last.
    host = Path(sysconfig.get_path("purelib"))
    (site / "zz_host.pth").write_text(f"{host}\n")
    scripts(folder, host)  # torchrun: the host's own would start processes that see the host's packages alone
    scripts(folder, site)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", type=Path, help="a new folder, which SYNERGY_ENVS then names")
    envs = parser.parse_args().envs.absolute()
    if envs.exists() and any(envs.iterdir()):
        raise SystemExit(f"unpack: {envs} is not empty; name another folder, or remove it")
    files = parts(HERE)
    sys.path.insert(0, str(HERE / "zstd"))
    import zstandard

    say(f"{len(files)} parts are whole; unpacking")
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(io.BufferedReader(Joined(files), 2**22))
    with unpacker as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(envs / "packed", filter="data")
    for packages in sorted((envs / "packed").iterdir()):
        make(envs / packages.name, packages)
        say(f"{packages.name}: unpacked; compiling bytecode")
        python = envs / packages.name / "bin" / "python"
        compiling = [str(python), "-m", "compileall", "-q", "-j", "0", str(python.parent.parent)]
        # Some packages ship files for other Pythons, which do not compile and are never imported.
        subprocess.run(compiling, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    (envs / "packed").rmdir()
    say("ready")
    print(f"export SYNERGY_ENVS={envs}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

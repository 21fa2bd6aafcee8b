"""Several servers for one evaluation: who gets which GPUs, ports and keys, and what becomes of all when one dies."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_eval import open_rows, table
from test_eval_server import alive, fake_package, wait_until, worker

from synergy import lab, paths
from synergy.errors import UserError
from synergy.machine import choose_ports, share
from synergy.workers import evaluate

# vLLM's server as far as evaluation sees it, by the stub of the tests: answers only who bears its key, tells its environment
# and what it was asked, and dies after as many requests as a file says.
FAKE_REPLICA = """
import json, os, pathlib, sys, threading, time
sys.path.insert(0, "TESTS")
from stub_openai import Stub, serve, text_of
folder, asked = pathlib.Path("FOLDER"), []
def reply(request):
    asked.append(text_of(request))
    with (folder / f"asked-{os.environ['CUDA_VISIBLE_DEVICES']}").open("a") as file:
        file.write(json.dumps([text_of(request), request["seed"]]) + "\\n")
    limit = folder / f"dies-{os.environ['CUDA_VISIBLE_DEVICES']}"
    if limit.exists() and len(asked) > int(limit.read_text()):
        print("RuntimeError: CUDA error: an illegal memory access", flush=True)
        os._exit(7)
    return 200, f"\\\\boxed{{{int(text_of(request).split(' plus')[0].split()[-1]) + 1}}}"
with (folder / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
port, name = (sys.argv[sys.argv.index(word) + 1] for word in ("--port", "--served-model-name"))
with serve(Stub(name, reply, key=os.environ["VLLM_API_KEY"]), int(port)):
    time.sleep(600)
"""


def replicas(tmp: Path) -> dict[str, Any]:
    program = FAKE_REPLICA.replace("FOLDER", str(tmp)).replace("TESTS", str(Path(__file__).parent))
    return {"env": {"PYTHONPATH": fake_package(tmp, program)}, "args": ["--tensor-parallel-size", "2"]}


def asked(tmp: Path) -> list[list[str]]:
    """Per pair of GPUs the requests, question with seed."""
    return [(tmp / f"asked-{gpus}").read_text().splitlines() for gpus in ("0,1", "2,3")]


def test_a_dead_server_ends_all_and_the_next_attempt_finishes(
    tmp_path: Path, eval_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    (tmp_path / "dies-2,3").write_text("5")
    spec = {
        "server": replicas(tmp_path),
        "eval_python": eval_python,
        "benchmarks": [{"name": "T", "tsv": str(table(tmp_path / "a.tsv", open_rows(8))), "kind": "open"}],
        "runs": 4,
        "workers": 2,
        "sampling": {"max_tokens": 9, "seed": 0},
    }
    assert worker(tmp_path, **spec).wait(240) == 1
    told = (tmp_path / "worker.log").read_text()
    assert "ended with code 7" in told and "illegal memory access" in told and "server-1.log" in told
    assert not (tmp_path / "out" / "results.jsonl").exists()
    wait_until(lambda: not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split()))
    (tmp_path / "dies-2,3").unlink()
    (
        (tmp_path / "model" / "config.json").unlink(),
        (tmp_path / "model").rmdir(),
        (tmp_path / "out").rename(tmp_path / "o"),
    )
    assert worker(tmp_path, **spec).wait(240) == 0, (tmp_path / "worker.log").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 32 and all(row["correct"] for row in rows)
    first, second = asked(tmp_path)
    assert len({*first, *second}) == 32, "the same server for the same question in both attempts"
    assert len(first) + len(second) <= 32 + 2 and len(set(first)) == len(set(second)) == 16
    for file in tmp_path.rglob("*.json"):
        assert "Bearer" not in file.read_text() and "API_KEY" not in file.read_text()


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ([], 1),
        (["--tensor-parallel-size", "2"], 2),
        (["--dtype=x", "-tp=4", "--data_parallel_size=2"], 8),
        (["--pipeline-parallel-size=2", "--enforce-eager", "-tp", "2"], 4),
    ],
)
def test_gpus_of_a_server(args: list[str], wanted: int) -> None:
    assert evaluate.wide(args) == wanted


def test_sizes_and_numbers_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"evaluate\.server: .*tensor"):
        evaluate.wide(["--tensor-parallel-size=many"])
    with pytest.raises(UserError, match=r"evaluate\.replicas=3 needs 6 GPUs, 2 each, and here are 4"):
        share(["0", "1", "2", "3"], 2, 3, "evaluate.replicas")
    assert share(["0", "1", "2"], 2, None, "evaluate.replicas") == [{"CUDA_VISIBLE_DEVICES": "0,1"}]


def test_ports_of_several_servers() -> None:
    assert len(set(choose_ports(None, 40))) == 40
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"evaluate.port={port} "):
            choose_ports(port - 1, 2)
    assert choose_ports(port, 1) == [port]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_real_servers(tmp_path: Path, eval_python: str) -> None:
    """The tiny base model behind two vLLM servers: every question is answered, by both in turn."""
    from synergy.data import prepare

    recipe = yaml.safe_load((paths.ROOT / "recipes/evaluate/tiny.yaml").read_text())
    sizes = {"train": 1, "val": 1, "bench": 6}
    data = {"source": "lab", "base": str(lab.BASE), "seed": 0, "sizes": sizes, "benchmarks": recipe["benchmarks"]}
    prepare.benchmarks(data, tmp_path)
    listed = [{**b, "tsv": str(tmp_path / b["tsv"])} for b in json.loads((tmp_path / "benchmarks.json").read_text())]
    child = worker(
        tmp_path,
        model=str(lab.BASE),
        server={"args": recipe["server"][:-1], "env": recipe["env"], "replicas": 2, "startup_timeout": 500},
        eval_python=eval_python,
        benchmarks=listed,
        **{name: recipe[name] for name in ("runs", "sampling", "workers")},
    )
    assert child.wait(580) == 0, (tmp_path / "worker.log").read_text()[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 6 * 4 and all(row["tokens"] > 0 for row in rows)
    for index in (0, 1):
        log = (tmp_path / "out" / f"server-{index}.log").read_text()
        assert log.count("/v1/chat/completions") >= 24, sys.argv

"""A real Ray cluster of three nodes with token authentication, and tiny jobs: what submit refuses before it queues any, and
jobs that are followed, left, followed again and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_cluster
from conftest import make_checkpoint
from ray_cluster import Local

from synergy import paths
from synergy.cluster import jobs, lacks, probe
from synergy.cluster.needs import Need
from synergy.errors import UserError

pytestmark = pytest.mark.timeout(300)
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-cluster-and-of-no-other-0123456789"}
PYTHON = f"cd {paths.ROOT} && {sys.executable}"


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the nodes' nvidia-smi says; where there is no such file, nothing, as on nodes whose GPUs are virtual."""
    folder = tmp_path_factory.mktemp("smi")
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nexec cat {folder}/cards\n")
    program.chmod(0o755)
    return folder / "cards"


@pytest.fixture(scope="module")
def cluster(cards: Path) -> Iterator[Local]:
    with ray_cluster.local(1, 1, env={**TOKEN, "PATH": f"{cards.parent}:{os.environ['PATH']}"}) as made:
        yield made


@pytest.fixture
def client(cluster: Local, monkeypatch: pytest.MonkeyPatch) -> Iterator[jobs.Client]:
    """In this process, where another test may have used Ray: it reads the variables once, unless it is told to again."""
    from ray._private.authentication_test_utils import reset_auth_token_state

    with monkeypatch.context() as patched:
        for name, value in TOKEN.items():
            patched.setenv(name, value)
        reset_auth_token_state()
        yield jobs.connect(cluster.address)
    reset_auth_token_state()


def call(verb: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", f"synergy.{verb}", *words]
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent, env={**os.environ, **TOKEN, **env}
    )


def sent(client: jobs.Client) -> list[str]:
    """Probes are left out: Ray may write a job down once more after it was deleted."""
    return [job.submission_id for job in jobs.every(client) if "-probe-" not in job.submission_id]


@pytest.mark.parametrize(
    ("told", "words", "env"),
    [
        ("the cluster is too small: a stage needs 3 nodes with 1 GPU, and 2 of its 3 nodes have that", ["cluster.nodes=3"], {}),
        ("a stage needs 1 node with 8 GPUs, and 0 of its 3 nodes have that", ["cluster.gpus=8"], {}),
        ("and 9000 GB of memory, and 0 of its 3 nodes", ["cluster.memory_gb=9000"], {}),
        ("refuses the token", [], {"RAY_AUTH_TOKEN": "another-one-0123456789-0123456789-0123"}),
        ("refuses the token", [], {"RAY_AUTH_MODE": "disabled"}),
        ("can't start on the cluster", ["cluster.python=/nowhere/python"], {}),
        ("can't start on the cluster", ["cluster.workdir=/nowhere"], {}),
        ("can't be written on the head", ["run.dir=/proc/run"], {}),
        ("holds the value of the environment variable RAY_AUTH_TOKEN", [f"+cluster.env.X={TOKEN['RAY_AUTH_TOKEN']}"], {}),
    ],
)  # fmt: skip
def test_what_is_lacking_is_one_message_and_nothing_is_queued(
    cluster: Local, client: jobs.Client, tmp_path: Path, told: str, words: list[str], env: dict[str, str]
) -> None:
    before = sent(client)
    given = ["recipe=sft", "cluster=ray", f"cluster.address={cluster.address}"]
    given += [] if any(word.startswith("run.dir=") for word in words) else [f"run.dir={tmp_path}"]
    done = call("submit", *given, *words, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr and done.stderr.startswith("synergy: ")
    assert sent(client) == before and not [job for job in jobs.every(client) if not job.status.is_terminal()]


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    began = time.monotonic()
    for address, told in (
        ("http://127.0.0.1:1", "no Ray cluster answers at http://127.0.0.1:1"),
        ("127.0.0.1:8265", "it is no http:// or https:// address"),
        (None, "no cluster is named"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            jobs.connect(address)
    assert time.monotonic() - began < jobs.CONNECT_SECONDS


def test_a_node_without_the_image_and_another_version_are_named(client: jobs.Client, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"node .* has no /nowhere/python: it lacks the image"):
        lacks.look(client, PYTHON, ["/nowhere/python"], str(tmp_path / "run"))
    assert not list(tmp_path.iterdir()), "the probe's file is gone"
    with pytest.raises(UserError, match=r"runs Ray 2\.9\.0, and here is"):
        lacks.ray_version(jobs.Client(client.address, client.sdk, "2.9.0"))
    lacks.look(client, PYTHON, [sys.executable], str(tmp_path))


def large(folder: Path) -> Path:
    """A checkpoint of 3 billion bfloat16 parameters, whose bytes are a hole in the file."""
    made = make_checkpoint(folder)
    sizes = {"vocab_size": 150_000, "hidden_size": 2_000, "num_hidden_layers": 1}
    (made / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **sizes}))
    header = json.dumps(
        {"model.w": {"dtype": "BF16", "shape": [3_000_000, 1000], "data_offsets": [0, 6 * 10**9]}}
    ).encode()
    with (made / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 6 * 10**9)
    return made


@pytest.mark.parametrize(
    ("said", "told", "words"),
    [
        ("A, 24564", "stage sft: weights, gradients and optimizer take 48 GB on each of 1 GPUs with 26 GB; take ", []),
        ("A, 81559", "cluster.gpu_memory_gb=141 is more than there is: stage eval-base may come to node ",
         ["cluster.gpu_memory_gb=141"]),
        ("A, 6000", "stage eval-base: the model's weights take 6.0 GB of each GPU, and vLLM may take 0.92 of 6.2 GB; spread",
         ["evaluate.server=[]"]),
    ],
)  # fmt: skip
def test_gpus_with_too_little_memory_are_one_message_and_nothing_is_queued(
    cluster: Local, client: jobs.Client, cards: Path, tmp_path: Path, said: str, told: str, words: list[str]
) -> None:
    """By what the nodes tell, and no node is occupied for it."""
    before = sent(client)
    given = ["recipe=sft", "cluster=ray", f"cluster.address={cluster.address}", f"run.dir={tmp_path}/run"]
    cards.write_text(f"B, 143771\n{said}\n")
    try:
        done = call("submit", *given, f"model.path={large(tmp_path / 'model')}", *words)
    finally:
        cards.unlink()
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert sent(client) == before


def test_what_the_nodes_tell_of_their_gpus_goes_with_the_job(
    cluster: Local, client: jobs.Client, cards: Path, tmp_path: Path
) -> None:
    """The driver then ends at once, as its store is not there."""
    given = ["recipe=sft", "cluster=ray", f"cluster.address={cluster.address}", f"run.dir={tmp_path}/run"]
    cards.write_text("B, 143771\nA, 81559\n")
    try:
        done = call("submit", *given, f"run.store=file://{tmp_path}/nowhere")
    finally:
        cards.unlink()
    assert done.returncode == 2, done.stdout + done.stderr
    (name,) = re.findall(r"^job (\S+) at", done.stdout, re.M)
    assert jobs.info(client, name).entrypoint.endswith(" cluster.gpu_memory_gb=85.5")
    assert lacks.look(client, PYTHON, [], str(tmp_path), given) == [], "virtual GPUs tell none, and null stays null"


def test_another_synergy_on_the_cluster_is_refused(client: jobs.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "source", lambda: "edited")
    with pytest.raises(UserError, match=r"Synergy's files \(digest\) here is edited, and \w+ in the driver's"):
        lacks.look(client, PYTHON, [], None)


def test_nodes_that_may_come_late_are_told_and_not_refused(client: jobs.Client) -> None:
    there = jobs.nodes(client)
    assert sorted(node.gpus for node in there) == [0, 1, 1] and sum(node.head for node in there) == 1
    assert lacks.sizes([Need(2, 1)], there, late=False) is None
    assert "needs 3 nodes" in str(lacks.sizes([Need(3, 1), Need(1, 1)], there, late=True))


def test_a_job_is_followed_left_and_followed_again_and_has_its_exit_code(cluster: Local, client: jobs.Client) -> None:
    name = jobs.send(
        client, "echo one; sleep 3; echo two; exit 2", "synergy-follow", {}, {"synergy": "run", "run.dir": "/x"}
    )
    argv = [sys.executable, "-m", "synergy.job", "logs", name, "--address", cluster.address]
    leaving = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, cwd=paths.PACKAGE.parent, env={**os.environ, **TOKEN}
    )
    assert leaving.stdout is not None
    while "one" not in (line := leaving.stdout.readline()):
        assert line, "the log ended"
    leaving.send_signal(signal.SIGKILL)  # the terminal is gone
    leaving.wait()
    again = call("job", "logs", name, "--address", cluster.address)
    assert again.returncode == 2 and re.findall(r"^(one|two)$", again.stdout, re.M) == ["one", "two"]
    status = call("job", "status", name, "--address", cluster.address)
    assert "FAILED" in status.stdout and "run.dir: /x" in status.stdout
    assert name in call("job", "list", RAY_API_SERVER_ADDRESS=cluster.address).stdout
    assert "knows no job" in call("job", "logs", "none", "--address", cluster.address).stderr


def test_a_stopped_job_leaves_nothing(cluster: Local, client: jobs.Client) -> None:
    name = jobs.send(client, "exec sleep 987.5", "synergy-stop", {}, {})
    while jobs.info(client, name).status != "RUNNING":
        time.sleep(0.1)
    assert "STOPPED" in call("job", "stop", name, "--address", cluster.address).stdout
    assert call("job", "logs", name, "--address", cluster.address).returncode == jobs.STOPPED
    assert not sleeping("987.5")


def sleeping(seconds: str) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter(["cmdline"]):
        if (one.info["cmdline"] or [])[-2:] == ["sleep", seconds]:
            found.append(one)
    return found

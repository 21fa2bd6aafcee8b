"""The real thing on a real Ray cluster of several nodes: `synergy submit recipe=two_stage cluster=ray`, beside the same words
on one machine. Once its terminal and a node are killed in mid-stage, and another node joins late; once SFT and RL span two
nodes, and the job is stopped, and the head killed. LLaMA-Factory, verl, vLLM and VLMEvalKit run on its nodes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_cluster
from test_end_to_end import SMALL, entries, run

from synergy import job, paths
from synergy.cluster import jobs
from synergy.driver import process
from synergy.driver.ledger import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

WORDS = [
    *SMALL,
    "data.sizes={train: 48, val: 8, bench: 4}",
    "evaluate.runs=1",
    "sft.batch=16",  # of one process or of two
    "~sft.config.gradient_accumulation_steps",
    "sft.config.per_device_train_batch_size=4",
    "sft.config.num_train_epochs=8",  # steps enough to stop it between two
    "budget.rl_steps=5",
    "run.verify=false",  # its forward passes have tests of their own (test_forward.py)
    "run.retries=3",
    "+cluster.stages.evaluate.gpus=0",  # any node, the head too: beside the training
    "rl.module=verl_fork",  # all nodes are this machine, and their processes forks of one
]
SFT_SAVED, RL_SAVED = "sft-*/work/out/checkpoint-2/trainer_state.json", "rl-*/work/checkpoints/global_step_2/data.pt"
TOLD = {"TOLD_TO_THE_JOB": "here", "HF_HUB_OFFLINE": "no"}
"""By +cluster.env; the second is one that stages set for themselves, which wins."""


class Submitted:
    """`synergy submit recipe=two_stage` to a cluster, until something happened or its end."""

    def __init__(self, cluster: ray_cluster.Local, folder: Path, *words: str) -> None:
        self.cluster, self.root, self.told = cluster, folder / "run", folder / "told.txt"
        words = (f"cluster.address={cluster.address}", f"run.dir={self.root}", *WORDS, *words)
        self.child = self.synergy("submit", "recipe=two_stage", "cluster=ray", *words)

    def synergy(self, *words: str) -> subprocess.Popen[bytes]:
        with self.told.open("w") as file:
            argv = [sys.executable, "-m", "synergy.cli", *words]
            return subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, cwd=paths.PACKAGE.parent)

    def wait_for(self, file: str) -> None:
        while not list(self.root.glob(f"stages/{file}")):
            assert self.child.poll() is None, self.told.read_text()
            time.sleep(0.05)

    @property
    def name(self) -> str:
        """The job's, as the terminal was told it."""
        return re.findall(r"synergy job logs (synergy-two-stage-\w+)", self.told.read_text())[0]

    def lose_the_terminal(self) -> str:
        """What `synergy job status` says after that. Another terminal follows the job from now on."""
        words = (self.name, "--address", self.cluster.address)
        self.child.kill()
        self.child.wait()
        assert self.synergy("job", "status", *words).wait(timeout=120) == 0, self.told.read_text()
        status = self.told.read_text()
        self.child = self.synergy("job", "logs", *words)
        return status

    def end(self) -> tuple[int, str]:
        try:
            return self.child.wait(timeout=1800), self.told.read_text()
        finally:
            self.child.kill()


def went_on(root: Path, rl: Entry) -> bool:
    """Whether RL's second attempt went on from its checkpoint."""
    file = (root / rl.output).parent / "attempt-2/verl_metrics.jsonl"
    metrics = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [row["step"] for row in metrics if "critic/score/mean" in row["data"]]
    return rl.attempt == 2 and rl.figures["steps"] == 5 and min(steps) >= 2


def at_once(one: Entry, other: Entry) -> float:
    """Seconds during which both ran."""
    return min(one.started + one.seconds, other.started + other.seconds) - max(one.started, other.started)


def results(made: dict[str, Entry]) -> dict[tuple[str, str], str]:
    """Digest of what each stage published, by its name and key."""
    return {(name, one.key): one.digest for name, one in made.items()}


def losses(root: Path, sft: Entry) -> dict[int, float]:
    """By step, over all attempts."""
    file = (root / sft.output).parent / sft.figures["metrics"]
    return {row["step"]: row["loss"] for row in map(json.loads, file.read_text().splitlines()) if "loss" in row}


def there(cluster: ray_cluster.Local) -> dict[int, str]:
    """By number: all processes of the cluster and of what it runs, but Ray's that wait for work or serve its dashboard."""
    found = {}
    for one in process.family(cluster.mark):
        try:
            found[one.pid] = " ".join(one.cmdline()).strip()
        except psutil.Error:
            continue
    return {pid: title for pid, title in found.items() if not title.startswith(("ray::IDLE", "ray-dashboard-"))}


def left(cluster: ray_cluster.Local, before: dict[int, str], of: str = "", seconds: float = 30.0) -> dict[int, str]:
    """What is there beside what was before, once that had time to end. of: in the titles that count."""
    end = time.monotonic() + seconds
    while True:
        found = {pid: title for pid, title in there(cluster).items() if pid not in before and of in title}
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def environments_of(cluster: ray_cluster.Local, title: str) -> Iterator[dict[str, str]]:
    for pid, found in there(cluster).items():
        if found.startswith(title):
            yield psutil.Process(pid).environ()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which the same words ran to their end on one machine."""
    root = tmp_path_factory.mktemp("undisturbed")
    run(root, "recipe=two_stage", *WORDS)
    return root


def test_a_run_outlives_its_terminal_and_a_node_and_ends_with_equal_weights(undisturbed: Path, tmp_path: Path) -> None:
    with ray_cluster.local() as cluster:
        first = cluster.add(1)
        sent = Submitted(cluster, tmp_path, *(f"+cluster.env.{name}={value}" for name, value in TOLD.items()))
        try:
            sent.wait_for(RL_SAVED)
            workers = list(environments_of(cluster, "ray::WorkerDict"))
            status = sent.lose_the_terminal()
            cluster.kill(first)
            time.sleep(5.0)
            cluster.add(1)
        finally:
            code, log = sent.end()
    assert "RUNNING" in status and f"run.dir: {sent.root}" in status
    assert code == 0 and "data: done" in log and "report: " in log, log
    assert [{name: env[name] for name in TOLD} for env in workers] == [{**TOLD, "HF_HUB_OFFLINE": "1"}]
    made, alone = entries(sent.root), entries(undisturbed)
    assert went_on(sent.root, made["two_stage"])
    retried = (sent.root / made["two_stage"].output).parent / "attempt-1/retried.txt"
    assert "a Ray node was lost" in retried.read_text()
    assert at_once(made["eval-base"], made["sft"]) > 0, "neither needs the other"
    assert results(made) == results(alone), "weights and predictions, bit for bit"


def test_a_run_over_two_nodes_is_stopped_and_loses_its_head_and_goes_on_to_its_end(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ray_cluster.local(1, 1) as cluster:
        job.act("list", None, cluster.address)  # imports what the next one needs
        before = there(cluster)
        sent = Submitted(cluster, tmp_path, "cluster.nodes=2")
        root = sent.root
        try:
            sent.wait_for(SFT_SAVED)
            name = sent.name
            job.act("stop", name, cluster.address)
        finally:
            code, log = sent.end()
        assert f"{name}: STOPPED" in capsys.readouterr().out
        assert code == jobs.STOPPED and "sft" not in entries(root), log
        assert left(cluster, before) == {}
        sent = Submitted(cluster, tmp_path, "cluster.nodes=2")
        try:
            sent.wait_for(RL_SAVED)
        finally:
            cluster.behead()
            orphaned = left(cluster, before, of="-m synergy.run cluster=ray")
            cluster.head()
            code, log = sent.end()
        assert orphaned == {}, "a driver without a head would keep the run directory from the next"
        assert code == 2 and len(re.findall(r"^synergy: ", log, re.M)) == 1 and "Traceback" not in log, log
        assert "forgotten its jobs; the same `synergy submit` then continues the run" in log
        for node in list(cluster.nodes):  # Ray ends it within a minute: the new head is to it another cluster's
            cluster.kill(node)
            cluster.add(1)
        code, log = Submitted(cluster, tmp_path, "cluster.nodes=2").end()
    assert code == 0 and "report: " in log, log
    made, alone = entries(root), entries(undisturbed)
    assert results(made).keys() == results(alone).keys()
    sft, rl = ((root / made[name].output).parent for name in ("sft", "two_stage"))
    assert made["sft"].attempt == 2 and went_on(root, made["two_stage"])
    for attempt in (1, 2):
        told = (sft / f"attempt-{attempt}/log.txt").read_text()
        assert set(re.findall(r"Multi-node training enabled: num nodes: 2, node rank: (\d)", told)) == {"0", "1"}
    assert losses(root, made["sft"]) == pytest.approx(losses(undisturbed, alone["sft"]), abs=1e-5)
    native = (rl / "attempt-2/log.txt").read_text()
    assert len(set(re.findall(r"WorkerDict pid=(\d+)", native))) == 2

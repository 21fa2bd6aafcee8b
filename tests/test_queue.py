"""Two RL jobs on one real Ray cluster, each with the queue through which verl moves its rollouts."""

from __future__ import annotations

import os
import subprocess

import pytest
import ray_cluster

from synergy import environments, paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
JOB = """
import sys
import ray, torch
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace=sys.argv[2])
import verl, transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
for number in range(2):
    fields = TensorDict({"n": torch.ones(1, 1)}, batch_size=1)
    tq.kv_batch_put(keys=[f"{sys.argv[2]}-{number}"], partition_id="train", fields=fields, tags=[{"number": number}])
print("ready", flush=True)
sys.stdin.readline()
print(*sorted(tq.kv_list("train")["train"]), flush=True)
sys.stdin.readline()
tq.close()
print("closed", flush=True)
"""


def job(cluster: ray_cluster.Local, name: str, modules: str) -> subprocess.Popen[str]:
    env = {**os.environ, **ray_cluster.ENV, "PYTHONPATH": paths.pythonpath()}
    env |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": modules}
    argv = [str(environments.locate("verl")), "-c", JOB, cluster.gcs, name]
    return subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(child: subprocess.Popen[str]) -> str:
    """What a job says after it was told to go on."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


@pytest.mark.parametrize(
    ("modules", "seen"),
    [
        ("synergy_verl,verl_queue", ["one-0 one-1", "two-0 two-1"]),
        ("synergy_verl", ["one-0 one-1 two-0 two-1"] * 2),
    ],
    ids=["with verl_queue", "without it, which the plug-in is there for"],
)
def test_each_sees_its_own_rollouts_alone(modules: str, seen: list[str]) -> None:
    with ray_cluster.local(cpus=8) as cluster:
        jobs = [job(cluster, name, modules) for name in ("one", "two")]
        try:
            for child in jobs:
                assert child.stdout is not None and child.stdout.readline() == "ready\n"
            assert [line(child) for child in jobs] == seen
            if modules.endswith("queue"):
                assert [line(child) for child in jobs] == ["closed", "closed"], "the first one's end is not the other's"
        finally:
            for child in jobs:
                child.kill()
                child.wait()

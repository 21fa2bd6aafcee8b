"""Two runs of verl on one host hand their weights each to its own vLLM, whatever Ray calls their jobs."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from synergy import paths

pytestmark = pytest.mark.slow
ENDS = """
import asyncio, sys, torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender
end, value = sys.argv[1], float(sys.argv[2])
handle = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"  # of a cluster's first job, in every cluster
if end == "sender":
    weights = iter([("w", torch.full((1000,), value))])
    asyncio.run(BucketedWeightSender(handle, bucket_size_mb=1, use_shm=True).async_send_weights(weights))
else:
    got = []
    receiver = BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
    receiver.receive_weights(lambda weights, is_last: got.extend(tensor.clone() for _, tensor in weights))
    print(*{value for tensor in got for value in tensor.tolist()})
"""


def start(python: str, end: str, value: int, run: Path) -> subprocess.Popen[str]:
    env = {
        "PYTHONPATH": paths.pythonpath(),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "synergy_verl,verl_servers",
        "VERL_FILE_LOGGER_PATH": str(run / "verl_metrics.jsonl"),
        "OMP_NUM_THREADS": "1",
    }
    argv = [python, "-c", ENDS, end, str(value)]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_side_by_side_keep_their_weights_apart(warm_python: str, tmp_path: Path) -> None:
    runs = [(value, tmp_path / str(value)) for value in (1, 2)]
    started = [
        (end, value, start(warm_python, end, value, run)) for value, run in runs for end in ("sender", "receiver")
    ]
    try:
        told = [(end, value, child, child.communicate(timeout=240)) for end, value, child in started]
    finally:
        for _, _, child in started:
            child.kill()
    for end, value, child, (out, err) in told:
        assert child.returncode == 0, err[-2000:]
        if end == "receiver":
            assert float(out.split()[-1]) == value


def test_the_reason_is_still_there() -> None:
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "workers/rollout/vllm_rollout/vllm_rollout.py").read_text()
    assert "/tmp/rl-colocate-zmq-{job_id}-replica-" in text, (
        "verl names its sockets by something else: see verl_servers"
    )

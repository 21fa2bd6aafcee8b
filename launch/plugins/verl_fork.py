"""`python verl_fork.py OVERRIDES` is `python -m verl.trainer.main_ppo OVERRIDES`, with one import for all processes.

For jobs on one machine without accelerator (see fork_server). The processes of Ray's workers come from the fork
server by Ray's own runtime_env.py_executable, those of vLLM by multiprocessing.
"""

import contextlib
import importlib
import os
import sys
import warnings
from typing import Any

import fork_server

# What the processes share. Not Ray, and so not verl: Ray reads the environment of a worker when it is imported.
PRELOAD = (
    "vllm",
    "vllm._custom_ops",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.qwen2_5_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.generation",
    "accelerate",
    "datasets",
    "peft",
    "tensordict",
    "qwen_vl_utils",
    "hydra",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
)


# Libraries that would start threads when they are imported: pyarrow's allocator, numpy's linear algebra.
SINGLE_THREADED = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}


def preload() -> None:
    """Import what the processes share, and nothing that starts a thread or reads what differs between them."""
    for name, value in SINGLE_THREADED.items():
        os.environ.setdefault(name, value)
    hidden: dict[str, Any] = {"ray": None}  # vLLM imports Ray where it finds it, for an executor that is not used here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.update(hidden)
        for name in PRELOAD:
            with contextlib.suppress(ImportError):  # without it the start is only slower
                importlib.import_module(name)
        del sys.modules["ray"]


def main() -> None:
    """Import, start the fork server, run verl's trainer with this process's arguments."""
    preload()
    arguments = sys.argv[1:]
    try:
        arguments.append(f"++ray_kwargs.ray_init.runtime_env.py_executable={fork_server.start()}")
    except RuntimeError as error:
        print(f"verl_fork: {error}; every process imports for itself, which is slower", file=sys.stderr)
    from verl.trainer import main_ppo

    sys.argv = ["verl.trainer.main_ppo", *arguments]
    main_ppo.main()


if __name__ == "__main__":
    main()

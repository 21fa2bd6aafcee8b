"""`python warm_start.py FOLDER [evaluation]`: import the big libraries once, and serve FOLDER/python, a stand-in for python
that has them: those of the training environment, or of the one for evaluation.

Kept by the driver (synergy/driver/warm.py) for as long as it runs stages: every framework's process is then a fork of this one
(see fork_server), where it would spend its first ten seconds importing. Ends when its standard input does. Exit code 1 when a
library started a thread or CUDA while it was imported, since a fork would not be safe. On a host with GPUs no library gets to
start CUDA here: what asks for a device as it is imported is left to the forks.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fork_server

# What the processes share. Not Ray, and so neither verl nor LLaMA-Factory: Ray reads the environment of a worker when it is
# imported.
PRELOAD = (
    "vllm",
    "vllm._custom_ops",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.models.qwen2_5_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.generation",
    "transformers.trainer_seq2seq",
    "accelerate",
    "datasets",
    "peft",
    "torchaudio",
    "trl",
    "wandb",
    "matplotlib.pyplot",
    "tensordict",
    "qwen_vl_utils",
    "hydra",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
)
ON_CPU = ("vllm.v1.worker.cpu_worker",)
"""On a GPU host its counterpart would start threads (humming, nvrtc), and adds half a second only."""
# What VLMEvalKit imports; not itself, since it reads a job's environment when it is imported.
EVALUATION = (
    "torch.export",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "pandas",
    "scipy.stats",
    "sklearn.metrics",
    "sympy",
    "nltk",
    "cv2",
    "av",
    "openai",
    "huggingface_hub.hf_api",
)
# Libraries that would start threads when they are imported: pyarrow's allocator, numpy's linear algebra.
SINGLE_THREADED = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}


class NeedsDevice(BaseException):
    """A library asked for a GPU while it was imported. No Exception: one that guards its question would go on with a guess,
    which the forks would inherit."""


def _refuse(*_: Any, **__: Any) -> None:
    raise NeedsDevice


def preload(names: Sequence[str] = PRELOAD, on_cpu: Sequence[str] = ON_CPU) -> list[str]:
    """Import what the processes share, and nothing that starts a thread or CUDA, or reads what differs between them. The names
    of what could not be, which each fork imports for itself: its start is only slower."""
    left: list[str] = []
    for name, value in SINGLE_THREADED.items():
        os.environ.setdefault(name, value)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # has torch count GPUs without starting CUDA
    hidden: dict[str, Any] = {"ray": None}  # vLLM imports Ray where it finds it, for an executor that is not used here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.update(hidden)
        import torch

        stock = torch.cuda._lazy_init
        torch.cuda._lazy_init = _refuse
        for name in (*names, *(() if torch.cuda.is_available() else on_cpu)):
            try:
                importlib.import_module(name)
            except (Exception, NeedsDevice):  # whatever a library thinks of being imported here
                left.append(name)
        torch.cuda._lazy_init = stock
        del sys.modules["ray"]
    return left


def main(folder: Path, *evaluation: str) -> int:
    """Import, serve, and wait for the end of standard input."""
    fork_server.sweep()
    if left := preload(EVALUATION, ()) if evaluation else preload():
        print(f"warm_start: not imported ahead: {', '.join(left)}", file=sys.stderr)
    try:
        fork_server.start(folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

"""`python verl_fork.py OVERRIDES` is `python -m verl.trainer.main_ppo OVERRIDES`, with one import for all processes.

For jobs on one machine without accelerator (see fork_server). The processes of Ray's workers come from the fork server by
Ray's own runtime_env.py_executable, those of vLLM by multiprocessing.
"""

import importlib
import json
import os
import sys
import warnings

# In this order: synergy_verl_cpu looks for vLLM when verl is imported.
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
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.workers.engine",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.workers.rollout.vllm_rollout.vllm_rollout",
    "verl.workers.rollout.vllm_rollout.utils",
    "verl.experimental.agent_loop",
    "verl.experimental.reward_loop",
    "ray._private.workers.default_worker",
)


def _read_ray_environment() -> None:
    """Ray 2.60 reads a worker's RAY_JOB_ID and RAY_RAYLET_PID when it is imported: give them to it again in a fork."""
    from ray._raylet import Config

    names = ("JOB_ID", "RAYLET_PID")
    Config.initialize(json.dumps({name: os.environ[f"RAY_{name}"] for name in names if f"RAY_{name}" in os.environ}))


def main() -> None:
    """Import, start the fork server, run verl's trainer with this process's arguments."""
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # pyarrow's only thread at import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOAD:
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # only slower
    import fork_server
    from verl.trainer import main_ppo

    python = fork_server.start(after_fork=_read_ray_environment)
    sys.argv = ["verl.trainer.main_ppo", *sys.argv[1:], f"++ray_kwargs.ray_init.runtime_env.py_executable={python}"]
    main_ppo.main()


if __name__ == "__main__":
    main()

"""Program: what the frameworks' own parsers say of native configs. JSON on stdin: {framework: [config]}; JSON on stdout:
{framework: [what is wrong with it, or null]}. One process, since each framework takes seconds to import.

LLaMA-Factory: get_train_args, told to use the CPU so that bf16 is not refused. verl: its YAML files, validate_config and
the dataclasses of actor and rollout. vLLM: the server's argument parser, and the engine's whole configuration.
mergekit: MergeConfiguration. Not seen here: whether a GPU has the memory, and whether NCCL works.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any


def llamafactory(config: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    get_train_args({**config, "use_cpu": True})


def verl(overrides: list[str]) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    from verl_config import check_reward, resolved

    config = resolved(overrides)
    check_reward(config)
    libraries = config.actor_rollout_ref.model.external_lib
    for library in [libraries] if isinstance(libraries, str) else libraries:
        importlib.import_module(library)
    validate_config(config, need_reference_policy(config), need_critic(config))
    longest = config.data.max_prompt_length + config.data.max_response_length
    policy, critic = config.actor_rollout_ref, config.critic
    held = [policy.actor.ppo_max_token_len_per_gpu]
    held += [part.log_prob_max_token_len_per_gpu for part in (policy.rollout, policy.ref)]
    held += [critic.ppo_infer_max_token_len_per_gpu] if need_critic(config) else []
    # seqlen_balancing.py asserts it, hours later
    assert min(held) >= longest, "a micro-batch holds no longest sequence"
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert (actor.engine.strategy, actor.engine.synergy_freeze_vision) == ("fsdp2", True), "the vision tower is trained"


def vllm_server(arguments: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    validate_parsed_serve_args(parsed)
    AsyncEngineArgs.from_cli_args(parsed).create_engine_config()


def vllm_engine(arguments: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(**arguments).create_engine_config()


def mergekit(config: dict[str, Any]) -> None:
    from mergekit.config import MergeConfiguration

    MergeConfiguration.model_validate(config)


PARSERS: dict[str, Callable[[Any], None]] = {
    parser.__name__: parser for parser in (llamafactory, verl, vllm_server, vllm_engine, mergekit)
}


def said(parser: Callable[[Any], None], config: Any) -> str | None:
    try:
        parser(config)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    asked = json.load(sys.stdin)
    with redirect_stdout(io.StringIO()):
        told = {name: [said(PARSERS[name], config) for config in found] for name, found in asked.items()}
    json.dump(told, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the frameworks' own threads are of no use any more


if __name__ == "__main__":
    main()

"""python -m synergy.workers.evaluate SPEC.json: serve a checkpoint with vLLM and evaluate it with eval/run.py.

SPEC.json: the keys of eval/run.py but `endpoint`, and {"model": path of the checkpoint, "server": {"args": [...],
"env": {...}, "port": number or null, "startup_timeout": seconds, "replicas": servers side by side, or null for as many as
the GPUs hold}, "eval_python": path}; and "record", the log-probabilities that each server must give (see logprobs.py) before
the file "gate" lets eval/run.py ask. Servers and VLMEvalKit start at the same time, since each spends its first seconds
importing. Exit code: eval/run.py's; 1 if a server fails, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy.errors import UserError
from synergy.machine import die_with_parent, gpus, share
from synergy.paths import ROOT
from synergy.workers import logprobs
from synergy.workers.vllm_server import Server, ServerConfig, ServerError, serve_all, stop

WARM = "SYNERGY_EVALUATION_WARM"
"""A stand-in for the interpreter that has VLMEvalKit's libraries imported (synergy/driver/warm.py)."""
_POLL_SECONDS = 0.2
_OURS = ("model", "server", "eval_python", "record")
_REPLY_SECONDS = 300.0


def wide(args: Sequence[str]) -> int:
    """GPUs that one server with these arguments takes. Raises UserError for a size that is no number."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, short in (("tensor", "-tp"), ("pipeline", "-pp"), ("data", "-dp")):
        parser.add_argument(f"--{name}-parallel-size", f"--{name}_parallel_size", short, type=int, default=1)
    try:
        return math.prod(vars(parser.parse_known_args(list(args))[0]).values())
    except argparse.ArgumentError as err:
        raise UserError(f"evaluate.server: {err}") from err


def read_spec(path: Path) -> tuple[list[ServerConfig], Path, dict[str, Any]]:
    """Servers, interpreter of the evaluation environment, and what eval/run.py is to be given. Raises UserError."""
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        server = raw["server"]
        args = tuple(str(arg) for arg in server.get("args", ()))
        env = {name: str(value) for name, value in server.get("env", {}).items()}
        shares = share(gpus(), wide(args), server.get("replicas"), "evaluate.replicas")
        first = server.get("port")
        configs = [
            ServerConfig(
                model=Path(raw["model"]),
                served_name=raw["model_name"],
                log=Path(raw["out"]) / ("server.log" if len(shares) == 1 else f"server-{index}.log"),
                args=args,
                env={**env, **visible},
                port=first + index if first else None,
                startup_timeout=float(server.get("startup_timeout", 600)),
            )
            for index, visible in enumerate(shares)
        ]
        model = Path(raw["model"])
        python = Path(raw["eval_python"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise UserError(f"evaluation spec {path}: {type(err).__name__} {err}") from err
    if not (model / "config.json").is_file():
        raise UserError(f"no model to evaluate: {model / 'config.json'} does not exist")
    if not os.access(python, os.X_OK):
        raise UserError(f"no evaluation environment: {python} is missing; set it up, or name another interpreter")
    return configs, python, {key: value for key, value in raw.items() if key not in _OURS}


def start_evaluation(
    python: Path, spec: Mapping[str, Any], servers: Sequence[Server], wait: float
) -> subprocess.Popen[bytes]:
    """eval/run.py on the servers' endpoints, in its own process group; its output is ours. By the stand-in for python that a
    driver keeps, where there is one."""
    path = Path(spec["out"]) / "eval_spec.json"
    told = {**spec, "endpoint": [server.endpoint for server in servers], "wait_seconds": wait}
    path.write_text(json.dumps(told, indent=1), encoding="utf-8")
    if (warm := os.environ.get(WARM)) and os.path.exists(warm):
        python = Path(warm)
    return subprocess.Popen(
        [str(python), str(ROOT / "eval" / "run.py"), str(path)],
        env={**os.environ, "SYNERGY_API_KEYS": " ".join(server.key for server in servers)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def dtype(args: Sequence[str]) -> str:
    """In which a server with these arguments computes. Not said, vLLM halves float32: any half is allowed for then."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dtype", default="auto")
    told = str(parser.parse_known_args(list(args))[0].dtype)
    return {"float": "float32", "half": "float16"}.get(told, told if told in logprobs.TOLERANCE else "bfloat16")


def verify(server: Server, config: ServerConfig, record: logprobs.Record) -> None:
    """Raises UserError for a server that reads another model than the tensors are, ServerError for one that doesn't answer."""
    try:
        ids, found = logprobs.by_server(server.endpoint, server.key, config.served_name, record, _REPLY_SECONDS)
    except (OSError, ValueError) as err:
        server.check()
        told = err.read().decode(errors="replace")[:500] if isinstance(err, urllib.error.HTTPError) else err
        server.fail(f"the vLLM server tells no log-probabilities of a prompt ({told}); run.verify=false asks for none")
    kind = dtype(config.args)
    off = logprobs.compare(record, ids, found, kind, f"{config.model}: what vLLM's server loads")
    print(f"vLLM's server loads the model as it is: log-probabilities {off:.2g} apart on average ({kind})", flush=True)


def watch(
    servers: Sequence[Server],
    child: subprocess.Popen[bytes],
    startup_timeout: float,
    ready: Callable[[Server], None] = lambda server: None,
) -> int:
    """The evaluation's exit code; ready: called with each server that is. Raises ServerError when a server ends first or is not
    ready in time."""
    begin, waiting = time.monotonic(), list(servers)
    while child.poll() is None:
        for server in servers:
            server.check()
        for server in [server for server in waiting if server.ready()]:
            waiting.remove(server)
            print(f"server ready after {time.monotonic() - begin:.1f} s on port {server.port}", flush=True)
            ready(server)
        if waiting and time.monotonic() - begin > startup_timeout:
            waiting[0].fail(f"the vLLM server was not ready after {startup_timeout:.0f} s")
        time.sleep(_POLL_SECONDS)
    return child.returncode


def evaluate(path: Path) -> int:
    """Exit code of the evaluation. Raises UserError or ServerError."""
    configs, python, spec = read_spec(path)
    patience, left = configs[0].startup_timeout, len(configs)
    told = json.loads(path.read_text(encoding="utf-8")).get("record")
    record = logprobs.read(Path(told)) if told else None

    def ready(server: Server) -> None:
        nonlocal left
        if record is not None:
            verify(server, configs[servers.index(server)], record)
        left -= 1
        if not left and "gate" in spec:
            Path(spec["gate"]).touch()

    with serve_all(configs) as servers:
        # The limit is watched here, where the server's last lines are known: eval/run.py only has to wait longer.
        child = start_evaluation(python, spec, servers, patience + 60)
        try:
            return watch(servers, child, patience, ready)
        finally:
            stop(child)


def _interrupted(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    """Exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    if len(arguments) != 1:
        print("usage: python -m synergy.workers.evaluate SPEC.json", file=sys.stderr)
        return 2
    try:
        return evaluate(Path(arguments[0]))
    except UserError as err:
        print(f"bad input: {err}", file=sys.stderr)
        return 2
    except ServerError as err:
        print(f"evaluation failed: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m synergy.workers.evaluate SPEC.json: serve a checkpoint with vLLM and evaluate it with eval/run.py.

SPEC.json: the keys of eval/run.py but `endpoint`, and {"model": path of the checkpoint, "server": {"args": [...],
"env": {...}, "port": number or null, "startup_timeout": seconds}, "eval_python": path}. Server and VLMEvalKit start at the
same time, since each spends its first seconds importing. Exit code: eval/run.py's; 1 if the server fails, 2 for bad input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy.errors import UserError
from synergy.machine import die_with_parent
from synergy.paths import ROOT
from synergy.workers.vllm_server import Server, ServerConfig, ServerError, serve, stop

_POLL_SECONDS = 0.2
_OURS = ("model", "server", "eval_python")


def read_spec(path: Path) -> tuple[ServerConfig, Path, dict[str, Any]]:
    """Server, interpreter of the evaluation environment, and what eval/run.py is to be given. Raises UserError."""
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        server = raw["server"]
        config = ServerConfig(
            model=Path(raw["model"]),
            served_name=raw["model_name"],
            log=Path(raw["out"]) / "server.log",
            args=tuple(str(arg) for arg in server.get("args", ())),
            env={name: str(value) for name, value in server.get("env", {}).items()},
            port=server.get("port"),
            startup_timeout=float(server.get("startup_timeout", 600)),
        )
        python = Path(raw["eval_python"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise UserError(f"evaluation spec {path}: {type(err).__name__} {err}") from err
    if not (config.model / "config.json").is_file():
        raise UserError(f"no model to evaluate: {config.model / 'config.json'} does not exist")
    if not os.access(python, os.X_OK):
        raise UserError(f"no evaluation environment: {python} is missing; set it up, or name another interpreter")
    return config, python, {key: value for key, value in raw.items() if key not in _OURS}


def start_evaluation(python: Path, spec: Mapping[str, Any], server: Server, wait: float) -> subprocess.Popen[bytes]:
    """eval/run.py on the server's endpoint, in its own process group; its output is ours."""
    path = Path(spec["out"]) / "eval_spec.json"
    path.write_text(json.dumps({**spec, "endpoint": server.endpoint, "wait_seconds": wait}, indent=1), encoding="utf-8")
    argv = [str(python), str(ROOT / "eval" / "run.py"), str(path)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)


def watch(server: Server, child: subprocess.Popen[bytes], startup_timeout: float) -> int:
    """The evaluation's exit code. Raises ServerError when the server ends first or is not ready in time."""
    begin, ready = time.monotonic(), False
    while child.poll() is None:
        if ready:
            server.check()
        elif server.ready():
            ready = True
            print(f"server ready after {time.monotonic() - begin:.1f} s on port {server.port}", flush=True)
        elif time.monotonic() - begin > startup_timeout:
            server.fail(f"the vLLM server was not ready after {startup_timeout:.0f} s")
        time.sleep(_POLL_SECONDS)
    return child.returncode


def evaluate(path: Path) -> int:
    """Exit code of the evaluation. Raises UserError or ServerError."""
    config, python, spec = read_spec(path)
    with serve(config) as server:
        # The limit is watched here, where the server's last lines are known: eval/run.py only has to wait longer.
        child = start_evaluation(python, spec, server, config.startup_timeout + 60)
        try:
            return watch(server, child, config.startup_timeout)
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

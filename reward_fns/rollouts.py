"""What became of each rollout: one JSON line per reward call, in a file per process, below $SYNERGY_ROLLOUTS."""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAILED = "failed.txt"
"""Beside the records: why a reward function can't go on. The driver ends the stage when it sees this file."""
PATIENCE = 20.0
"""Seconds that a failed call waits to be ended by the driver, which looks every second."""


def record(result: Mapping[str, float], info: Mapping[str, Any], response: str, prefix: str, **more: Any) -> None:
    """Log one rollout of the training split: the reward's parts, question id and step of verl's extra_info `info`, the
    lengths of the generated response and of the prefix in characters. more: what else is known of it."""
    if info.get("split") != "train":
        return
    entry = {"id": str(info.get("id", "")), **result, "characters": len(response), "prefix": len(prefix)}
    log({**entry, "step": _number(info.get("global_steps")), **more, "time": round(time.time(), 3)})


def log(entry: Mapping[str, Any]) -> None:
    """Append `entry` to this process's file, if $SYNERGY_ROLLOUTS names a folder.

    One write to a file opened for appending, so that threads do not mix lines and a kill loses at most the last one.
    """
    folder = os.environ.get("SYNERGY_ROLLOUTS")
    if not folder:
        return
    # ASCII: a lone surrogate in a response has no UTF-8.
    data = (json.dumps(dict(entry)) + "\n").encode()
    descriptor = os.open(os.path.join(folder, f"{os.getpid()}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def fail(message: str) -> None:
    """Leave `message` for the driver, and give it time to end this process.

    Why wait: verl 0.9.1 takes an exception for a rollout that failed, fills its place and trains on, so that a checkpoint
    could be made of it (trainer/ppo/v1/agent_loop_tq.py). As long as the call does not return, the step is not done.
    """
    folder = os.environ.get("SYNERGY_ROLLOUTS")
    if not folder:
        return
    aside = Path(folder) / f"{FAILED}.{os.getpid()}.{threading.get_ident()}"
    aside.write_text(message, encoding="utf-8", errors="backslashreplace")
    aside.replace(Path(folder) / FAILED)  # whole, or not there
    time.sleep(PATIENCE)


def _number(value: Any) -> int | None:
    """verl's step, an int, or numpy's idea of one, or absent."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None

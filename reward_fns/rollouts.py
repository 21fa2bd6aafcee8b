"""What became of each rollout: one JSON line per reward call, in a file per process, below $SYNERGY_ROLLOUTS."""

import json
import os
from collections.abc import Mapping
from typing import Any


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

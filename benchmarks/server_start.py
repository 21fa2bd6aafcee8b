"""vLLM's start with and without launch/plugins/vllm_processor.py, until it serves; the server as an evaluation starts it.

    python benchmarks/server_start.py MODEL [turns=3] [server=ARG,ARG,...]         # of the training environment

MODEL: with the real vocabulary, which is what takes time: `python benchmarks/gpu/random_model.py MODEL mini RANKS` makes one
with narrow layers, for a machine without GPU. Each turn starts both, in another order. Also told: vLLM's own figure of its
first look at a picture (multi-modal warmup). VLLM_PLUGINS= is vLLM's word for: none.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from synergy import paths
from synergy.workers import vllm_server

WARMUP = re.compile(r"Multi-modal warmup completed in ([\d.]+)s")
LONGER = ("--max-model-len=8192", '--limit-mm-per-prompt={"video": 0}')
"""Beside the tiny scale's arguments: a picture takes more tokens than there."""


def start(config: vllm_server.ServerConfig) -> tuple[float, float]:
    """Seconds until /health answers, and of the first look at a picture."""
    begun = time.monotonic()
    with vllm_server.serve(config) as server:
        while not server.ready():
            if time.monotonic() > begun + config.startup_timeout:
                server.fail(f"not ready after {config.startup_timeout:.0f} s")
            time.sleep(0.2)
        seconds = time.monotonic() - begun
    found = WARMUP.search(config.log.read_text(errors="replace"))
    return seconds, float(found[1]) if found else 0.0


def main(argv: list[str]) -> None:
    if not argv:
        raise SystemExit(__doc__)
    words = dict(word.split("=", 1) for word in argv[1:])
    recipe = yaml.safe_load((paths.ROOT / "recipes/evaluate/tiny.yaml").read_text())
    args = tuple(words["server"].split(",")) if "server" in words else (*recipe["server"], *LONGER)
    took: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        config = vllm_server.ServerConfig(Path(argv[0]).absolute(), "model", Path(folder, "log.txt"), args)
        for turn in range(int(words.get("turns", 3))):
            for way in list(took)[:: 1 if turn % 2 == 0 else -1]:
                off = {"VLLM_PLUGINS": ""} if way == "without" else {}
                took[way].append(start(replace(config, env={**recipe["env"], **off})))
                print("{}: {:.1f} s, of which picture {:.1f}".format(way, *took[way][-1]), flush=True)
    for index, what in enumerate(("start", "picture")):
        ratios = [new[index] / old[index] for old, new in zip(took["without"], took["with"], strict=True)]
        print(f"{what}, with over without: median {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

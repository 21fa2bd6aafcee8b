"""What Synergy costs beside its frameworks: chain.py, then its SFT and its RL once more by hand, and the ratios.

    python benchmarks/gpu/pairs.py WORK RANKS [chain.py's words ...]

One after the other on the same GPUs, so on a host that does nothing else; with 3B, 24 steps of SFT and 6 of RL, warm. Ends at
once where the chain does not get to its end. Its last lines are by_hand.py's: rates of both, seconds before the first step of
both by part, and their ratios. A recipe of one kind has one pair: ``recipe=sft sft.config.num_train_epochs=2``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LONG = (
    "run.warm=true", "rl.module=verl_fork", "run.keep_work=true", "budget.rl_steps=6",
    "rl.verl.data.train_batch_size=16", "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "rl.verl.actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
)  # fmt: skip
TWICE = ("recipe.sft_epochs=2",)
"""Of interleaved, which is chain.py's recipe where none is named."""
WEIGHTS = {"sft": "out", "rl": "checkpoints"}
"""What a stage's work folder holds of weights: published, they are of no use to by_hand.py, and take its room."""


def clear(folder: Path, kind: str) -> None:
    for found in folder.glob(f"**/work/{WEIGHTS[kind]}"):
        for weights in [*found.rglob("*.safetensors"), *found.rglob("*.pt")]:
            weights.unlink()


def main(argv: list[str]) -> int:
    if len(argv) < 2 or "=" in argv[0]:
        raise SystemExit(__doc__)
    work = Path(argv[0]).absolute()
    words = [*LONG, *(() if any(word.startswith("recipe=") for word in argv) else TWICE), *argv[2:]]
    code = subprocess.run([sys.executable, str(HERE / "chain.py"), str(work), argv[1], *words]).returncode
    there = [kind for kind in WEIGHTS if any(work.glob(f"runs/stages/{kind}-*"))]
    for kind in there if code == 0 else ():
        clear(work / "runs/stages", kind)
        out = work / f"by-hand-{kind}"
        shutil.rmtree(out, ignore_errors=True)
        code = subprocess.run([sys.executable, str(HERE / "by_hand.py"), str(work / "runs"), kind, str(out)]).returncode
        clear(out, kind)
        if code:
            break
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

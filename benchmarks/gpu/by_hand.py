"""An SFT or RL stage once more by hand: its own command.sh, without Synergy, and the ratio of the two.

    python benchmarks/gpu/by_hand.py RUN_DIR sft|rl OUT        # the newest stage of the kind; OUT: a new folder

If the stage has just begun, the two run at the same time, for which a host with several GPUs has room: start this with those
that the stage doesn't use (CUDA_VISIBLE_DEVICES). verl is started by its own module, cold, however the stage was. Prints one
JSON object: the native throughput of both (LLaMA-Factory: train_samples_per_second; verl: tokens per second over all steps, and
the same without the first), their ratio, and the seconds of the whole process beside those of the stage. Where the stage was
followed from its beginning, here or by chain.py, also the seconds of both before their first step, by part, and SFT's steps a
second without the first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from moments import FOLLOWED, Watch, rate, start

from synergy.driver import ledger
from synergy.driver.warm import VERL

MODULE = rf"(-m[\s\\]+){VERL}\b"
"""Of a command.sh, whose words are lines."""


def rerun(folder: Path, attempt: Path, out: Path) -> float:
    """Run the stage's command with every path of the stage's folder replaced by OUT; seconds."""
    there = out / attempt.name
    (out / "work" / "rollouts").mkdir(parents=True)
    there.mkdir()
    for file in attempt.iterdir():
        if file.suffix in (".sh", ".yaml", ".txt"):
            text = file.read_text().replace(str(folder), str(out))
            (there / file.name).write_text(re.sub(MODULE, r"\1verl.trainer.main_ppo", text))
    start = time.monotonic()
    with (out / "log.txt").open("w") as log:
        subprocess.run(["bash", str(there / "command.sh")], stdout=log, stderr=log, check=True)
    return time.monotonic() - start


def sft(log: Path, attempt: Path) -> dict[str, float]:
    """LLaMA-Factory's own figures, from what it prints at the end."""
    text = log.read_text(errors="replace")
    found = {
        name: re.findall(rf"{name}\s*=\s*([\d.]+)\s*$", text, re.MULTILINE)
        for name in ("train_samples_per_second", "train_loss")
    }
    return {"throughput": float(found["train_samples_per_second"][-1]), "loss": float(found["train_loss"][-1])}


def rl(log: Path, attempt: Path) -> dict[str, float]:
    """Tokens of all sequences over the seconds of the steps, by verl's own figures."""
    rows = [json.loads(line)["data"] for line in (attempt / "verl_metrics.jsonl").read_text().splitlines()]
    steps = [(row["perf/total_num_tokens"], row["timing_s/step"]) for row in rows if "timing_s/step" in row]
    later = steps[1:] or steps
    return {
        "throughput": sum(n for n, _ in steps) / sum(s for _, s in steps),
        "throughput_warm": sum(n for n, _ in later) / sum(s for _, s in later),
        "steps": len(steps),
    }


READ: dict[str, Any] = {"sft": sft, "rl": rl}


def begun(root: Path, kind: str) -> tuple[Path, Path]:
    """The newest stage of this kind, and its newest attempt; waited for: its command is written before its process starts."""
    told = False
    while True:
        if found := sorted(root.glob(f"stages/{kind}-*/attempt-*/command.sh"), key=lambda file: file.stat().st_mtime):
            return found[-1].parents[1], found[-1].parent
        if not told:
            print(f"by_hand: {root} has no {kind} stage; waiting until one begins", file=sys.stderr, flush=True)
            told = True
        time.sleep(1)


def ended(root: Path, folder: Path) -> ledger.Entry:
    """Its entry in the ledger, waited for."""
    while True:
        for entry in ledger.read(root / "ledger.jsonl").values():
            if (root / entry.output).parent == folder:
                return entry
        time.sleep(1)


def main(argv: list[str]) -> None:
    if len(argv) != 3 or argv[1] not in READ:
        raise SystemExit(__doc__)
    root, kind, out = Path(argv[0]).absolute(), argv[1], Path(argv[2]).absolute()
    folder, attempt = begun(root, kind)
    with Watch(folder) as stage, Watch(out) as hand:
        whole = rerun(folder, attempt, out)
        entry = ended(root, folder)
    followed = root.parent / FOLLOWED
    before = json.loads(followed.read_text()) if followed.exists() else {}
    starts = {
        "synergy": before.get(folder.name) or stage.marks(kind, attempt),
        "by_hand": hand.marks(kind, out / attempt.name, out / "log.txt"),
    }
    ours, theirs = READ[kind](attempt / "log.txt", attempt), READ[kind](out / "log.txt", out / attempt.name)
    ratios = {key: round(ours[key] / theirs[key], 4) for key in theirs if "throughput" in key}
    told = {"stage": entry.name, "synergy": ours | {"seconds": entry.seconds}, "by_hand": theirs | {"seconds": whole}}
    if all({"imported", "first"} <= set(marks) for marks in starts.values()):
        told["start"] = {who: start(marks) for who, marks in starts.items()}
        told["start"]["ratio"] = round(told["start"]["synergy"]["start"] / told["start"]["by_hand"]["start"], 4)
    if kind == "sft" and all(marks.get("steps", 0) > 1 for marks in starts.values()):
        ratios["throughput_warm"] = round(rate(starts["synergy"]) / rate(starts["by_hand"]), 4)
    print(json.dumps(told | {"ratio": ratios | {"seconds": round(entry.seconds / whole, 4)}}))


if __name__ == "__main__":
    main(sys.argv[1:])

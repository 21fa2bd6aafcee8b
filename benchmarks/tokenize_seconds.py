"""How long LLaMA-Factory reads and tokenizes SFT's rows, by the number of processes, and with the number that the rule takes.

    python benchmarks/tokenize_seconds.py MODEL [rows=48] [side=448] [workers=1,2,4,8,16]      # of the training environment

MODEL: with the real vocabulary (`python benchmarks/gpu/random_model.py MODEL mini RANKS` makes one of narrow layers). Each row
has a picture of side x side and 2,000 words. What is measured is LLaMA-Factory's own get_dataset, each time in a new process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from synergy.stages import sft_length

WORDS = ("so", "the", "sum", "is", "wait", "check")
FILE = {
    "file_name": "train.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}  # fmt: skip


def make(folder: Path, rows: int, side: int) -> None:
    from PIL import Image

    draw = random.Random(0)
    Image.frombytes("RGB", (side, side), draw.randbytes(side * side * 3)).save(folder / "a.png")
    made = [
        {
            "messages": [
                {"role": "user", "content": f"<image>What is it? {number}"},
                {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=2000))},
            ],
            "images": ["a.png"],
        }
        for number in range(rows)
    ]
    (folder / "train.json").write_text(json.dumps(made))
    (folder / "dataset_info.json").write_text(json.dumps({"train": FILE}))


def tokenize(model: str, folder: str, workers: int) -> None:
    """Prints the seconds of it, last."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    words = {
        "model_name_or_path": model, "stage": "sft", "do_train": True, "finetuning_type": "full", "dataset": "train",
        "dataset_dir": folder, "media_dir": folder, "template": "qwen2_vl", "cutoff_len": 4096, "output_dir": f"{folder}/out",
        "preprocessing_num_workers": workers, "overwrite_cache": True, "report_to": "none",
    }  # fmt: skip
    models, data, training, _, _ = get_train_args(words)
    tools = load_tokenizer(models)
    template = get_template_and_fix_tokenizer(tools["tokenizer"], data)
    start = time.monotonic()
    get_dataset(template, models, data, training, stage="sft", **tools)
    print(f"\n{time.monotonic() - start}", flush=True)


def main(argv: list[str]) -> None:
    if not argv:
        raise SystemExit(__doc__)
    words = {"rows": "48", "side": "448", "workers": "1,2,4,8,16"} | dict(word.split("=", 1) for word in argv[1:])
    rows, side = int(words["rows"]), int(words["side"])
    counts = [int(count) for count in words["workers"].split(",")]
    chosen = sft_length.workers(rows, len(os.sched_getaffinity(0)))
    took: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), rows, side)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{name}/cache", "OMP_NUM_THREADS": "1"}
        for count in dict.fromkeys([*counts, chosen]):
            told = [sys.executable, __file__, "--tokenize", argv[0], name, str(count)]
            done = subprocess.run(told, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            took[count] = float(done.stdout.splitlines()[-1])
            print(f"{rows} rows, {side} x {side}, {count:2} processes: {took[count]:6.1f} s", flush=True)
    most = sft_length.MOST_WORKERS
    print(f"the rule takes {chosen}" + (f": {took[chosen] / took[most]:.2f} of {most}'s time" if most in took else ""))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tokenize"]:
        tokenize(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(sys.argv[1:])

"""How far a loader's log-probabilities are from the tensors' in bfloat16 and float16, and how far a wrong model's are.

.envs/train/bin/python benchmarks/forward_tolerance.py [prompts=24] [vllm=true] [model=FOLDER,FOLDER]

What the tolerances of synergy/workers/logprobs.py rest on. The reference is the check's own: every tensor in its place, in
float32. Against it, per dtype, transformers and vLLM on the same model, over the check's prompt and others with other pictures;
then with two neighbouring layers swapped, each pair in transformers, and in vLLM the pair that is hardest to see. A tolerance
has to lie between the largest difference of the former and the smallest of the latter.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from synergy import lab, machine, paths
from synergy.driver import checkpoint
from synergy.workers import logprobs
from synergy.workers.logprobs import Record

DTYPES = ("float32", "bfloat16", "float16")
WORDS = (
    *("how", "many", "digits", "are", "in", "the", "picture"),
    *("what", "is", "their", "sum", "without", "largest"),
)


def asked(count: int, folder: Path, model: Any) -> list[Record]:
    """The check's prompt first, and others, each with what the model of the tensors says of it."""
    from PIL import Image

    chance = random.Random(0)
    found = []
    for number in range(count):
        text, image = logprobs.TEXT, logprobs.picture()
        if number:
            text = " ".join(chance.choices(WORDS, k=chance.randint(5, 60))) + f" {chance.randint(0, 9999)}?"
            sides = [28 * chance.randint(2, 6) for _ in range(2)]
            noise = Image.frombytes("RGB", (9, 7), chance.randbytes(9 * 7 * 3)).resize((sides[0], sides[1]))
            out = io.BytesIO()
            noise.save(out, "PNG")
            image = base64.b64encode(out.getvalue()).decode()
        rendered, ids, values = logprobs.forward(model, folder, text, image)
        found.append(Record(text, rendered, image, ids, values))
    return found


def off(record: Record, found: list[float | None]) -> float:
    """As the check computes it: mean absolute difference in nats over the prompt's text."""
    pairs = [(a, b) for a, b in zip(record.logprobs, found, strict=True) if a is not None and b is not None]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def tell(who: str, dtype: str, what: str, found: list[float]) -> None:
    print(
        f"{who:12} {dtype:9} {what:28} check's prompt {found[0]:.4f}; {len(found)} prompts: median {median(found):.4f}, "
        f"least {min(found):.4f}, most {max(found):.4f}; allowed {logprobs.TOLERANCE[dtype]}",
        flush=True,
    )


def by_transformers(folder: Path, records: list[Record]) -> dict[str, int]:
    """Tells its differences; per dtype the pair of layers (its first) whose swap changes the check's prompt least."""
    import torch
    from transformers import AutoModelForImageTextToText

    hardest: dict[str, int] = {}
    for dtype in DTYPES:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))

        def differences(some: list[Record], model: Any = model) -> list[float]:
            return [off(r, told(model, folder, r)) for r in some]

        tell("transformers", dtype, "the model as it is", differences(records))
        layers = model.model.language_model.layers
        swaps: dict[int, float] = {}
        for i in range(len(layers) - 1):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
            swaps[i] = differences(records[:1])[0]
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
        i = hardest[dtype] = min(swaps, key=swaps.__getitem__)
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
        tell("transformers", dtype, f"layers {i} and {i + 1} swapped", differences(records))
        print(f"{'':12} swapped pairs, check's prompt: least {min(swaps.values()):.4f}, most {max(swaps.values()):.4f}")
    return hardest


def told(model: Any, folder: Path, record: Record) -> list[float | None]:
    """Log-probabilities by transformers, the last step in float32, as vLLM has it."""
    import torch

    class Whole(torch.nn.Module):
        config = model.config

        def forward(self, **given: Any) -> Any:
            found = model(**given)
            found.logits = found.logits.float()
            return found

    return logprobs.forward(Whole(), folder, record.asked, record.image)[2]


@contextmanager
def swapped(folder: Path, pair: int) -> Iterator[Path]:
    """A copy of the checkpoint in which two neighbouring layers of the text model have changed places."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy2(file, copy)
        names = {}
        for file in checkpoint.files(folder):
            tensors = {other(key, pair): tensor for key, tensor in load_file(file).items()}
            save_file(tensors, copy / file.name, {"format": "pt"})
            names |= dict.fromkeys(tensors, file.name)
        index = copy / "model.safetensors.index.json"
        if index.exists():
            index.write_text(json.dumps({**json.loads(index.read_text()), "weight_map": names}))
        yield copy


def other(name: str, pair: int) -> str:
    """The tensor name with one layer's number put in place of its neighbour's."""
    for here, there in ((pair, pair + 1), (pair + 1, pair)):
        if f".layers.{here}." in name and "visual" not in name:
            return name.replace(f".layers.{here}.", f".layers.{there}.")
    return name


def by_vllm(folder: Path, records: list[Record], dtype: str, what: str) -> None:
    """In a process of its own, since an engine keeps its memory for as long as its process lives."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "job.json"
        file.write_text(json.dumps({"model": str(folder), "dtype": dtype, "records": [asdict(r) for r in records]}))
        recipe: dict[str, Any] = yaml.safe_load((paths.ROOT / "recipes/sample/tiny.yaml").read_text())
        env = {**os.environ, **({} if machine.gpus() else recipe["env"]), "PYTHONPATH": paths.pythonpath()}
        words = [sys.executable, __file__, f"engine={file}"]
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        if done.returncode:
            print(
                f"{'vllm':12} {dtype:9} {what}: does not run here: {done.stderr.strip().splitlines()[-1][:200]}",
                flush=True,
            )
        else:
            tell("vllm", dtype, what, json.loads(file.with_suffix(".found").read_text()))


def engine(file: Path) -> None:
    """What a vLLM engine says of the records of a job; the differences beside the job's file."""
    from vllm import LLM

    job = json.loads(file.read_text())
    where = {"gpu_memory_utilization": 0.5} if machine.gpus() else {"kv_cache_memory_bytes": 268435456}
    llm = LLM(
        model=job["model"],
        dtype=job["dtype"],
        enforce_eager=True,
        max_model_len=1024,
        max_num_batched_tokens=4096,
        max_num_seqs=8,
        **where,
    )
    records = [Record(**row) for row in job["records"]]
    found = [off(record, logprobs.by_engine(llm, record)[1]) for record in records]
    file.with_suffix(".found").write_text(json.dumps(found))


def main(argv: list[str]) -> None:
    words = dict(word.split("=", 1) for word in argv)
    if "engine" in words:
        engine(Path(words["engine"]))
        return
    for name in words.get("model", str(lab.BASE)).split(","):
        folder = Path(name)
        print(folder, flush=True)
        reference = logprobs.placed(folder)
        records = asked(int(words.get("prompts", "24")), folder, reference)
        del reference
        hardest = by_transformers(folder, records)
        if words.get("vllm", "true") == "true":
            for dtype in DTYPES:
                by_vllm(folder, records, dtype, "the model as it is")
            for dtype, pair in hardest.items():
                with swapped(folder, pair) as copy:
                    by_vllm(copy, records, dtype, f"layers {pair} and {pair + 1} swapped")


if __name__ == "__main__":
    main(sys.argv[1:])

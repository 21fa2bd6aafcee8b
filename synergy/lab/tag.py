"""Count how many of 16 sampled responses to each question are right: `python -m synergy.lab.tag MODEL DATA OUT`.

Plain transformers, temperature 1, the reasoning instruction appended; the project's own checker judges. OUT holds
{record id: passes}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from reward_fns.answer import judge
from synergy.data.prompt import query
from synergy.data.records import LEVEL_RUNS, Record, read
from synergy.lab import INSTRUCTION

BATCH = 16  # questions
NEW_TOKENS = 96


def respond(model: Any, processor: Any, batch: list[Record], folder: Path, runs: int) -> list[list[str]]:
    """`runs` sampled responses to each question."""
    prompts, images = [], []
    for record in batch:
        text = query(record.question, record.choices, INSTRUCTION)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        images.append(Image.open(folder / record.images[0]).convert("RGB"))
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.inference_mode():
        made = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=runs,
            max_new_tokens=NEW_TOKENS,
        )
    texts = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i * runs : (i + 1) * runs] for i in range(len(batch))]


def main() -> None:
    """Write the passes of every question of both benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    processor = AutoProcessor.from_pretrained(args.model)
    processor.tokenizer.padding_side = "left"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model).eval()
    passes = {}
    for name in ("bench_open", "bench_choice"):
        records = read(args.data / f"{name}.jsonl")
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            responses = respond(model, processor, batch, args.data, LEVEL_RUNS)
            for record, texts in zip(batch, responses, strict=True):
                passes[record.id] = sum(judge(text, record.answer, record.choices).correct for text in texts)
            print(f"{name} {start + len(batch)}/{len(records)}", flush=True)
    args.out.write_text(json.dumps(passes, indent=0) + "\n")


if __name__ == "__main__":
    main()

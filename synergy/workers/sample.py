"""Program of the ``sample`` stage: ``python -m synergy.workers.sample SPEC.json``.

n responses per question through vLLM's offline engine, judged by the reward function, appended to ``responses.jsonl`` as they
come: one line per response with question id, index, response, token count, finish reason, accuracy and format. A question
that already has n lines is not asked again.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_fns.accuracy_format import compute_score
from synergy.data import records
from synergy.data.prompt import query
from synergy.data.records import Record

CHUNK = 256
"""Questions per call of the engine: large enough to keep it full, small enough to lose little."""


def done(file: Path, n: int) -> set[str]:
    """Ids with all n responses on file; a torn last line is cut off, so that appending stays safe."""
    if not file.exists():
        return set()
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) != len(text):
        os.truncate(file, len(whole))
    counts = Counter(str(json.loads(line)["id"]) for line in whole.splitlines())
    return {name for name, count in counts.items() if count >= n}


def chunks(items: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def request(record: Record, processor: Any, media: Path, instruction: str | None) -> dict[str, Any]:
    """vLLM's input for one question: the rendered chat and its images."""
    from PIL import Image

    text = query(record.question, record.choices, instruction)
    content: list[dict[str, str]] = [{"type": "image"} for _ in record.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not record.images:
        return {"prompt": prompt}
    return {
        "prompt": prompt,
        "multi_modal_data": {"image": [Image.open(media / i).convert("RGB") for i in record.images]},
    }


def row(record: Record, index: int, output: Any) -> dict[str, Any]:
    """One line of responses.jsonl."""
    told = {"id": record.id, "split": "sample", "choices": dict(record.choices) if record.choices else ""}
    score = compute_score("synergy", output.text, record.answer, told)
    return {
        "id": record.id,
        "index": index,
        "response": output.text,
        "tokens": len(output.token_ids),
        "finish_reason": output.finish_reason,
        "acc": score["acc"],
        "format": score["format"],
    }


def run(spec: Mapping[str, Any]) -> None:
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    file, media = Path(spec["out"]), Path(spec["records"]).parent
    wanted = set(spec["ids"]) if spec["ids"] is not None else None
    asked = [r for r in records.read(Path(spec["records"])) if wanted is None or r.id in wanted]
    finished = done(file, spec["n"])
    left = [record for record in asked if record.id not in finished]
    print(f"{len(asked)} questions, {len(finished)} answered before, {spec['n']} responses each", flush=True)
    if not left:
        return
    processor = AutoProcessor.from_pretrained(spec["model"])
    engine = LLM(model=spec["model"], **spec["engine"])
    plain = {k: v for k, v in spec["sampling"].items() if k != "seed"}
    seed = f"{spec['seed']}/{spec['sampling']['seed']}"
    with file.open("a", encoding="utf-8") as sink:
        for part in chunks(left, CHUNK):
            inputs = [request(record, processor, media, spec["instruction"]) for record in part]
            # A seed per question: what a question draws does not depend on what was asked before a kill.
            params = [SamplingParams(n=spec["n"], seed=zlib.crc32(f"{seed}/{r.id}".encode()), **plain) for r in part]
            answers = engine.generate(inputs, params, use_tqdm=False)
            for record, answer in zip(part, answers, strict=True):
                lines = [json.dumps(row(record, i, output)) for i, output in enumerate(answer.outputs)]
                sink.write("\n".join(lines) + "\n")
            sink.flush()
            os.fsync(sink.fileno())


def main(argv: list[str]) -> int:
    run(json.loads(Path(argv[1]).read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

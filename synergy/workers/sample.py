"""Program of the ``sample`` stage: ``python -m synergy.workers.sample SPEC.json``.

n responses per question through vLLM's offline engine, judged by the reward function, appended as they come to the folder
``responses``: one line per response with question id, index, response, token count, finish reason, accuracy and format.
A question that already has n lines is not asked again. Several engines share the questions, one per GPU (or per
``tensor_parallel_size`` GPUs), each a process of this program that writes a file of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
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
from synergy.machine import die_with_parent

CHUNK = 256
"""Questions per call of the engine: large enough to keep it full, small enough to lose little."""


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """All responses of all engines."""
    for file in sorted(folder.glob("*.jsonl")):
        for _, found in records.lines(file):
            yield found


def done(folder: Path, n: int) -> set[str]:
    """Ids with all n responses on file. What a kill tore, a line or the responses of a question, is taken out first, so
    that appending stays safe."""
    found: set[str] = set()
    for file in folder.glob("*.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        ids = [str(json.loads(line)["id"]) for line in whole]
        complete = {name for name, count in Counter(ids).items() if count == n}
        kept = [line for line, name in zip(whole, ids, strict=True) if name in complete]
        if len(kept) < len(lines):
            aside = file.with_suffix(".new")
            aside.write_bytes(b"".join(kept))
            aside.replace(file)
        found |= complete
    return found


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(index) for index in range(len(listed.splitlines()))]


def engines(spec: Mapping[str, Any]) -> list[dict[str, str]]:
    """Environment of each engine: ``replicas`` of them, or as many as the GPUs hold, or one."""
    seen, wide = gpus(), int(spec["engine"].get("tensor_parallel_size", 1))
    count = spec["replicas"] or max(1, len(seen) // wide)
    shares = [seen[i * wide : (i + 1) * wide] for i in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} if seen else {} for share in shares]


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


def run(spec: Mapping[str, Any], index: int, count: int) -> None:
    """Ask engine ``index`` of ``count`` its share of the questions that are left."""
    folder, media = Path(spec["responses"]), Path(spec["records"]).parent
    left = questions(spec)[0][index::count]
    if not left:
        return
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    processor = AutoProcessor.from_pretrained(spec["model"])
    engine = LLM(model=spec["model"], **spec["engine"])
    plain = {k: v for k, v in spec["sampling"].items() if k != "seed"}
    seed = f"{spec['seed']}/{spec['sampling']['seed']}"
    with (folder / f"{index}.jsonl").open("a", encoding="utf-8") as sink:
        for part in chunks(left, CHUNK):
            inputs = [request(record, processor, media, spec["instruction"]) for record in part]
            # A seed per question: what a question draws does not depend on what was asked before a kill, or of which engine.
            params = [SamplingParams(n=spec["n"], seed=zlib.crc32(f"{seed}/{r.id}".encode()), **plain) for r in part]
            answers = engine.generate(inputs, params, use_tqdm=False)
            for record, answer in zip(part, answers, strict=True):
                lines = [json.dumps(row(record, i, output)) for i, output in enumerate(answer.outputs)]
                sink.write("\n".join(lines) + "\n")
            sink.flush()
            os.fsync(sink.fileno())


def questions(spec: Mapping[str, Any]) -> tuple[list[Record], int]:
    """(questions that are left, how many there are in all)."""
    wanted = set(spec["ids"]) if spec["ids"] is not None else None
    asked = [r for r in records.read(Path(spec["records"])) if wanted is None or r.id in wanted]
    finished = set(spec["finished"])
    return [record for record in asked if record.id not in finished], len(asked)


def main(argv: list[str]) -> int:
    file = Path(argv[1])
    spec = json.loads(file.read_text())
    if len(argv) > 2:
        run(spec, int(argv[2]), int(argv[3]))
        return 0
    folder = Path(spec["responses"])
    folder.mkdir(parents=True, exist_ok=True)
    spec["finished"] = sorted(done(folder, spec["n"]))
    shares = engines(spec)
    left, total = questions(spec)
    told = f"{total} questions, {total - len(left)} answered before, {spec['n']} responses each"
    print(f"{told}, {len(shares)} engine{'s' if len(shares) > 1 else ''}", flush=True)
    if len(shares) == 1:
        run(spec, 0, 1)
        return 0
    file = file.with_suffix(".shared.json")
    file.write_text(json.dumps(spec))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "synergy.workers.sample", str(file), str(index), str(len(shares))],
            env={**os.environ, **env},
            preexec_fn=die_with_parent,
        )
        for index, env in enumerate(shares)
    ]
    try:
        return max(abs(process.wait()) for process in running)
    finally:
        for process in running:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv))

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

from reward_fns.own import compute_score
from synergy.data import records
from synergy.data.prompt import query
from synergy.data.records import Record
from synergy.machine import die_with_parent, gpus

IN_FLIGHT = 1024
"""Questions that the engine holds at once: enough to keep it full, few enough for their images to fit in memory."""


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


def engines(spec: Mapping[str, Any]) -> list[dict[str, str]]:
    """Environment of each engine: ``replicas`` of them, or as many as the GPUs hold, or one."""
    seen, wide = gpus(), int(spec["engine"].get("tensor_parallel_size", 1))
    count = spec["replicas"] or max(1, len(seen) // wide)
    shares = [seen[i * wide : (i + 1) * wide] for i in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} if seen else {} for share in shares]


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
    left = questions(spec)[0][index::count]
    if left:
        from transformers import AutoProcessor
        from vllm import LLM

        processor = AutoProcessor.from_pretrained(spec["model"])
        ask(
            LLM(model=spec["model"], **spec["engine"]),
            processor,
            spec,
            left,
            Path(spec["responses"]) / f"{index}.jsonl",
        )


def seed(spec: Mapping[str, Any], question: str) -> int:
    """Of one question: what it draws does not depend on what was asked before a kill, or of which engine."""
    return zlib.crc32(f"{spec['seed']}/{spec['sampling']['seed']}/{question}".encode())


def ask(engine: Any, processor: Any, spec: Mapping[str, Any], left: Sequence[Record], file: Path) -> None:
    """Append the judged responses to the questions ``left`` to ``file``, each question as soon as it is finished."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    plain = {k: v for k, v in spec["sampling"].items() if k != "seed"} | {"output_kind": RequestOutputKind.FINAL_ONLY}
    media = Path(spec["records"]).parent

    def requests() -> Iterator[tuple[Record, dict[str, Any], Any]]:
        for record in left:
            params = SamplingParams(n=spec["n"], seed=seed(spec, record.id), **plain)
            yield record, request(record, processor, media, spec["instruction"]), params

    with file.open("a", encoding="utf-8") as sink:
        for record, outputs in answers(engine, requests()):
            sink.write("".join(json.dumps(row(record, i, output)) + "\n" for i, output in enumerate(outputs)))
            sink.flush()


def answers(
    engine: Any, requests: Iterator[tuple[Record, dict[str, Any], Any]]
) -> Iterator[tuple[Record, Sequence[Any]]]:
    """(question, its responses) as they are finished. New questions go in as others come out: a batch that is waited for as a
    whole ends with an engine that is nearly idle. (What `LLM.generate` does inside, vLLM 0.26 and 0.27.)"""
    asked: dict[str, Record] = {}
    more = True
    while True:
        while more and len(asked) < IN_FLIGHT:
            if (new := next(requests, None)) is None:
                more = False
                break
            record, prompt, params = new
            engine.llm_engine.add_request(record.id, prompt, params)
            asked[record.id] = record
        if not asked:
            return
        for output in engine.llm_engine.step():
            if output.finished:
                yield asked.pop(output.request_id), output.outputs


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

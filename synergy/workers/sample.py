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
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reward_fns.own import compute_score
from synergy.data import checks, records
from synergy.data.prompt import query
from synergy.data.records import Record
from synergy.errors import UserError
from synergy.machine import HOST, die_with_parent, gpus, share
from synergy.workers import logprobs
from synergy.workers.vllm_server import EXTENSION

TOLD = "told.txt"
"""Beside the spec: the message of an engine among several, whose output that of others may follow."""
END_SECONDS = 15.0
"""For an engine that is told to end."""
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
    wide = int(spec["engine"].get("tensor_parallel_size", 1))
    return share(gpus(), wide, spec["replicas"], "sample.replicas")


def check(spec: Mapping[str, Any], left: Sequence[Record]) -> None:
    """What vLLM would die of in the middle of the run. Raises UserError that names the question."""
    model, limit = Path(spec["model"]), spec["engine"].get("max_model_len")
    visual = checks.images(left, Path(spec["records"]).parent, checks.grid(model), whole=False)
    if limit:
        response = spec["sampling"].get("max_tokens", 16)  # vLLM's default
        checks.questions(left, visual, checks.tokenizer(model), spec["instruction"], int(limit), response)


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


def judged(record: Record, response: str) -> Mapping[str, float]:
    """What the reward function makes of one response."""
    told = {"id": record.id, "split": "sample", "choices": dict(record.choices) if record.choices else ""}
    return compute_score("synergy", response, record.answer, told)


def row(record: Record, index: int, output: Any) -> dict[str, Any]:
    """One line of responses.jsonl."""
    score = judged(record, output.text)
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
        os.environ.setdefault("VLLM_HOST_IP", HOST)
        engine = LLM(model=spec["model"], **{"worker_extension_cls": EXTENSION, **spec["engine"]})
        if file := spec.get("record"):
            verify(engine, spec["model"], Path(file))
        ask(engine, processor, spec, left, Path(spec["responses"]) / f"{index}.jsonl")


def verify(engine: Any, model: str, file: Path) -> None:
    """Raises UserError for an engine that reads another model than the tensors are."""
    if (record := logprobs.read(file)) is not None:
        ids, found, dtype = logprobs.by_engine(engine, record)
        off = logprobs.compare(record, ids, found, dtype, f"{model}: what vLLM loads")
        print(f"vLLM loads the model as it is: log-probabilities {off:.2g} apart on average ({dtype})", flush=True)


def seed(spec: Mapping[str, Any], question: str) -> int:
    """Of one question: what it draws does not depend on what was asked before a kill, or of which engine."""
    return zlib.crc32(f"{spec['seed']}/{spec['sampling']['seed']}/{question}".encode())


def ask(engine: Any, processor: Any, spec: Mapping[str, Any], left: Sequence[Record], file: Path) -> None:
    """Append the judged responses to the questions ``left`` to ``file``, each question as soon as it is finished."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    plain = {k: v for k, v in spec["sampling"].items() if k != "seed"} | {"output_kind": RequestOutputKind.FINAL_ONLY}
    media = Path(spec["records"]).parent

    def add(record: Record) -> None:
        params = SamplingParams(n=spec["n"], seed=seed(spec, record.id), **plain)
        try:
            # Rendered by the engine's own renderer, as `LLM.generate` does: a raw prompt takes twice the time (vLLM 0.27).
            (rendered,) = engine.renderer.render_cmpl([request(record, processor, media, spec["instruction"])])
            engine.llm_engine.add_request(record.id, rendered, params)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"record {record.id!r} can't be asked: {error}") from error

    with file.open("a", encoding="utf-8") as sink:
        for record, outputs in answers(engine.llm_engine, left, add):
            sink.write("".join(json.dumps(row(record, i, output)) + "\n" for i, output in enumerate(outputs)))
            sink.flush()


def answers(
    engine: Any, left: Sequence[Record], add: Callable[[Record], None]
) -> Iterator[tuple[Record, Sequence[Any]]]:
    """(question, its responses) as they are finished. New questions go in as others come out: a batch that is waited for as a
    whole ends with an engine that is nearly idle. (What `LLM.generate` does inside, vLLM 0.26 and 0.27.)"""
    waiting, asked = deque(left), dict[str, Record]()
    while waiting or asked:
        while waiting and len(asked) < IN_FLIGHT:
            record = waiting.popleft()
            add(record)
            asked[record.id] = record
        for output in engine.step():
            if output.finished:
                yield asked.pop(output.request_id), output.outputs


def questions(spec: Mapping[str, Any]) -> tuple[list[Record], int]:
    """(questions that are left, how many there are in all)."""
    wanted = set(spec["ids"]) if spec["ids"] is not None else None
    asked = [r for r in records.read(Path(spec["records"])) if wanted is None or r.id in wanted]
    finished = set(spec["finished"])
    return [record for record in asked if record.id not in finished], len(asked)


def together(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all engines, or for the first that fails: then the others are ended. Exit code; 2: the user can mend it."""
    try:
        while (codes := [process.poll() for process in running]).count(None) and not any(codes):
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
    failed = next((index for index, code in enumerate(codes) if code), None)
    if failed is None or codes[failed] == 2:
        return 0 if failed is None else 2
    print(f"engine {failed} ended with exit code {codes[failed]}, the others are stopped", flush=True)
    return 1


def main(argv: list[str]) -> int:
    """Exit code: 2 for what the user can mend, told in the last line."""
    told = Path(argv[1]).with_name(TOLD)
    try:
        code = sample(argv)
        if code == 2:
            print(told.read_text(), flush=True)
        return code
    except UserError as error:
        told.write_text(str(error))
        print(error, flush=True)
        return 2


def sample(argv: list[str]) -> int:
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
    check(spec, left)
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
    return together(running)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

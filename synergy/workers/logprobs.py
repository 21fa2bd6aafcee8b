"""``python -m synergy.workers.logprobs MODEL RECORD [check]``: a forward pass on a fixed prompt and image, and what it must be.

RECORD is a JSON file with the prompt, its token ids and their log-probabilities by the tensors of MODEL, each put in its place
by our own names, none left out. It is written where it is not there yet. With ``check`` the loader of LLaMA-Factory and verl,
transformers' ``from_pretrained``, must then read a model with the same log-probabilities; vLLM is asked for them by the
workers that have it running. Why: a loader fills tensors whose names it does not know with random numbers, and warns at most.
Both passes are in float32 on the processor. Exit code 2, with the reason in the last line, for a load that is another model.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synergy import machine
from synergy.driver import checkpoint
from synergy.errors import UserError

TEXT = "Which shapes do you see, which of them is red, and what is 12 + 30? Think step by step."
TOLERANCE = {"float32": 0.001, "bfloat16": 0.15, "float16": 0.03}
"""dtype in which a loader computes -> mean absolute difference of log-probabilities, in nats, that is no other model.
Measured by benchmarks/forward_tolerance.py."""


@dataclass(frozen=True)
class Record:
    """asked: what the user says beside the image. text: the prompt, rendered. image: PNG, base64. ids: of all of it, image
    tokens among them. logprobs: of each id after those before it, but the first; None where it is an image token. loads: loader
    and version -> how far off it was."""

    asked: str
    text: str
    image: str
    ids: list[int]
    logprobs: list[float | None]
    loads: dict[str, float] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        machine.replace_text(file, json.dumps(asdict(self)) + "\n")


def read(file: Path) -> Record | None:
    """None where there is no whole record."""
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def messages(asked: str, image: Any) -> list[dict[str, Any]]:
    """The chat; image: what stands for the image there."""
    return [{"role": "user", "content": [image, {"type": "text", "text": asked}]}]


def compare(record: Record, ids: Sequence[int], found: Sequence[float | None], dtype: str, who: str) -> float:
    """Mean absolute difference. Raises UserError, in one line, where it is more than that dtype explains. found: as
    ``Record.logprobs``; values at image tokens don't count. who: loader and model, as people know them."""
    mend = (
        "its tensors or tokenizer are not what that loader expects, and it filled in its own: look for 'newly initialized' or "
        "'missing keys' in the log, use a version of it that knows this model, or set run.verify=false to go on regardless"
    )
    if list(ids) != record.ids:
        raise UserError(
            f"{who} reads other tokens than the tokenizer beside the weights gives ({len(ids)} of them); {mend}"
        )
    pairs = [(a, b) for a, b in zip(record.logprobs, found, strict=True) if a is not None and b is not None]
    if len(pairs) < sum(value is not None for value in record.logprobs):
        raise UserError(f"{who} gives no log-probability for some tokens; set run.verify=false to go on without them")
    off, allowed = sum(abs(a - b) for a, b in pairs) / len(pairs), TOLERANCE[dtype]
    if not off <= allowed:  # NaN is wrong too
        here, there = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
        raise UserError(
            f"{who} is not the model of its tensors: mean log-probability {there:.4f} of a fixed prompt where the tensors give "
            f"{here:.4f}, {off:.4f} apart on average and {allowed} in {dtype} allowed; {mend}"
        )
    return off


def picture() -> str:
    """A red rectangle, a blue disc and a line: PNG, base64."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (112, 84), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((8, 12, 52, 70), fill=(200, 30, 40))
    draw.ellipse((58, 20, 104, 66), fill=(20, 90, 200))
    draw.line((0, 0, 112, 84), fill="black", width=3)
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def opened(image: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")


def placed(folder: Path) -> Any:
    """The model in float32 with every tensor in its place by our names. Raises UserError for one that has none, or is left."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    from synergy.stages.sft import runtime_name

    with no_init_weights():
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.tie_weights()
    places, tensors = dict(model.state_dict()), checkpoint.read(folder)
    names = {runtime_name(name): tensor for name, tensor in tensors.items()}
    left = set(places) - set(names) - ({"lm_head.weight"} if checkpoint.tied(folder) else set())
    if odd := sorted(left | (set(names) - set(places))):
        raise UserError(
            f"{folder}: {len(odd)} tensors, the first {odd[0]}, are not those of {type(model).__name__} as transformers builds "
            "it; use the version that the environments pin, or set run.verify=false"
        )
    for file in checkpoint.files(folder):
        with safe_open(file, "pt") as stream:
            for name, tensor in names.items():
                if tensor.file == file:
                    places[name].copy_(stream.get_tensor(tensor.stored))
    return model


def loaded(folder: Path) -> Any:
    """The model as LLaMA-Factory and verl load it, in float32."""
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def forward(model: Any, folder: Path, asked: str, image: str) -> tuple[str, list[int], list[float | None]]:
    """The rendered prompt, its ids, and their log-probabilities but the first's."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(messages(asked, {"type": "image"}), tokenize=False, add_generation_prompt=True)
    given = processor(text=[text], images=[opened(image)], return_tensors="pt")
    with torch.no_grad():
        scores = model.eval()(**given).logits[0, :-1].log_softmax(-1)
    ids = [int(number) for number in given["input_ids"][0]]
    picked = scores.gather(-1, given["input_ids"][0, 1:, None])[:, 0].tolist()
    visual = model.config.image_token_id
    return text, ids, [None if number == visual else value for number, value in zip(ids[1:], picked, strict=True)]


def by_engine(engine: Any, record: Record) -> tuple[list[int], list[float | None], str]:
    """Ids, log-probabilities but the first's, and dtype of a ``vllm.LLM``."""
    from vllm import SamplingParams

    asked = {"prompt": record.text, "multi_modal_data": {"image": opened(record.image)}}
    (output,) = engine.generate([asked], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)
    ids = list(output.prompt_token_ids)
    told = [entry[number].logprob for entry, number in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    return ids, told, str(engine.llm_engine.model_config.dtype).removeprefix("torch.")


def by_server(
    endpoint: str, key: str, name: str, record: Record, seconds: float
) -> tuple[list[int], list[float | None]]:
    """Ids and log-probabilities but the first's, of a vLLM server. Raises OSError, or ValueError for a reply without them."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{record.image}"}}
    body = {
        "model": name, "messages": messages(record.asked, image), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{endpoint}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=seconds) as reply:
        told = json.load(reply)
    try:
        ids = [int(number) for number in told["prompt_token_ids"]]
        rows: list[Mapping[str, Any]] = told["prompt_logprobs"][1:]
        return ids, [float(row[str(number)]["logprob"]) for number, row in zip(ids[1:], rows, strict=True)]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"no log-probabilities of the prompt in the reply ({type(error).__name__} {error})") from error


def make(folder: Path, file: Path, check: bool) -> None:
    import transformers

    record = read(file)
    if record is None:
        image = picture()
        text, ids, values = forward(placed(folder), folder, TEXT, image)
        record = Record(TEXT, text, image, ids, values)
        record.write(file)
    if check:
        who = f"transformers {transformers.__version__}"
        _, ids, found = forward(loaded(folder), folder, record.asked, record.image)
        off = compare(record, ids, found, "float32", f"{folder}: what {who} loads")
        Record(**{**asdict(record), "loads": {**record.loads, who: off}}).write(file)
        print(f"{who} loads {folder} as it is: log-probabilities {off:.2g} apart on average", flush=True)


def main(argv: list[str]) -> int:
    try:
        make(Path(argv[1]), Path(argv[2]), argv[3:] == ["check"])
    except UserError as error:
        print(error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

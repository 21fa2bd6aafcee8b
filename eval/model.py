"""The model class that VLMEvalKit builds: one chat request per question to an OpenAI-compatible endpoint.

VLMEvalKit's own API classes send images as JPEG, drop `usage` and `finish_reason`, wait up to half a second before each
request, and turn a failed request into a prediction that is scored as wrong. This one does none of that.
"""

# VLMEvalKit is untyped, so its classes count as Any.
# mypy: disable-error-code="misc"

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import mimetypes
from pathlib import Path
from typing import Any

from PIL import Image
from vlmeval.api.base import BaseAPI

from eval import session
from eval.endpoint import ask
from eval.session import AskError

_SENT_AS_IS = {"image/png", "image/jpeg"}
_IMAGES = 64
"""Images kept encoded: the runs of a question follow each other."""


@functools.lru_cache(_IMAGES)
def data_url(path: str) -> str:
    """The image file as a data URL: PNG and JPEG byte for byte, other formats re-encoded as PNG; never resized."""
    mime = mimetypes.guess_type(path)[0] or ""
    if mime in _SENT_AS_IS:
        data = Path(path).read_bytes()
    else:
        mime, buffer = "image/png", io.BytesIO()
        with Image.open(path) as image:
            image.save(buffer, "PNG")
        data = buffer.getvalue()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def content(message: list[dict[str, Any]], instruction: str | None) -> list[dict[str, Any]]:
    """VLMEvalKit's message as OpenAI content parts; the instruction closes the last text."""
    parts: list[dict[str, Any]] = []
    for item in message:
        if item["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": data_url(item["value"])}})
        else:
            parts.append({"type": "text", "text": item["value"]})
    if instruction:
        last = parts[-1]
        if last["type"] != "text":
            raise AskError(f"the prompt ends with an image, so the instruction has no text to close: {message}")
        last["text"] = last["text"].rstrip() + "\n" + instruction
    return parts


def question_seed(base: int, run: int, benchmark: str, index: str) -> int:
    """A seed of 31 bits for one question of one run: equal seeds would make the samples of a run go wrong together."""
    digest = hashlib.sha256(f"{base}/{run}/{benchmark}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class SynergyEndpoint(BaseAPI):
    """`served` is the name the endpoint knows the model by; VLMEvalKit knows it by that and the number of the run."""

    is_api = True

    def __init__(self, served: str, run: int) -> None:
        super().__init__(verbose=False)
        self.served = served
        self.run = run

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """The key of the answer in the session, which keeps the text: VLMEvalKit writes all predictions anew after each one,
        a quadratic cost for long responses. Raises AskError, and the whole evaluation stops, when there is no answer."""
        state = session.current()
        state.check()
        benchmark, index = str(dataset), str(message[0]["question"])
        try:
            base, parts = state.spec.seed, content(message, state.spec.instruction)
            seed = None if base is None else question_seed(base, self.run, benchmark, index)
            payload = {"model": self.served, "messages": [{"role": "user", "content": parts}], **state.spec.sampling}
            body = json.dumps(payload if seed is None else {**payload, "seed": seed}).encode()
            key = f"{self.run}/{benchmark}/{index}/{hashlib.sha256(body).hexdigest()[:32]}"
            if state.answered(key) is None:
                reply = ask(state.endpoint(benchmark, index), body, state.check, self.served)
                state.record(key, {"run": self.run, "benchmark": benchmark, "index": index, "seed": seed, **reply})
        except Exception as err:
            state.fail(f"benchmark {benchmark}, run {self.run}, question {index}: {err}")
            raise
        return key

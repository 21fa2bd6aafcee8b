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
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3
from PIL import Image
from vlmeval.api.base import BaseAPI

from eval import session
from eval.session import AskError
from eval.spec import Endpoint

_SENT_AS_IS = {"image/png", "image/jpeg"}
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_UNFINISHED = {"abort", "error"}
"""vLLM's reasons for a response that it broke off; any other is the model's own end."""
_IMAGES = 64
"""Images kept encoded: the runs of a question follow each other."""


@functools.cache
def pool() -> urllib3.PoolManager:
    """One keep-alive pool for all runs. urllib3 takes no proxy from the environment, as a loopback endpoint needs."""
    spec = session.current().spec
    return urllib3.PoolManager(num_pools=len(spec.endpoints), maxsize=spec.workers, block=True, retries=False)


class Kept(str):
    """A response that pickles as its key in the cache: VLMEvalKit pickles all responses of a benchmark anew after each one,
    which for long responses takes longer than the model does."""

    key: str

    def __reduce__(self) -> tuple[Any, ...]:
        return kept, (self.key,)


def kept(key: str) -> Kept:
    """The response to a request that was answered."""
    text = Kept(session.current().response(key))
    text.key = key
    return text


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
        """The response text. Raises AskError, and the whole evaluation stops, when the endpoint does not answer."""
        state = session.current()
        state.check()
        benchmark, index = str(dataset), str(message[0]["question"])
        try:
            base, parts = state.spec.seed, content(message, state.spec.instruction)
            seed = None if base is None else question_seed(base, self.run, benchmark, index)
            payload = {"model": self.served, "messages": [{"role": "user", "content": parts}], **state.spec.sampling}
            body = json.dumps(payload if seed is None else {**payload, "seed": seed}).encode()
            key = f"{self.run}/{benchmark}/{index}/{hashlib.sha256(body).hexdigest()[:32]}"
            row = state.answered(key)
            if row is None:
                row = {"run": self.run, "benchmark": benchmark, "index": index, "seed": seed}
                row |= self._ask(body, state.endpoint(benchmark, index))
                state.record(key, row)
        except Exception as err:
            state.fail(f"benchmark {benchmark}, run {self.run}, question {index}: {err}")
            raise
        return kept(key)

    def _ask(self, body: bytes, endpoint: Endpoint) -> dict[str, Any]:
        """Send one request; what may pass (connection, timeout, busy server, a broken reply) is tried again, a refusal is
        not."""
        spec = session.current().spec
        url, begin, reason = f"{endpoint.url}/chat/completions", time.monotonic(), ""
        for attempt in range(spec.retries + 1):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 1), 30.0))
                session.current().check()
            try:
                reply = pool().request(
                    "POST",
                    url,
                    body=body,
                    headers=endpoint.headers,
                    timeout=urllib3.Timeout(connect=30.0, read=spec.request_timeout),
                )
            except urllib3.exceptions.HTTPError as err:
                reason = f"{type(err).__name__}: {err}"
                continue
            if reply.status == 200:
                try:
                    return {**read_reply(reply.data, self.served), "seconds": round(time.monotonic() - begin, 3)}
                except ValueError as err:
                    reason = str(err)
                    continue
            reason = f"HTTP {reply.status}: {reply.data[:500].decode(errors='replace')}"
            if reply.status not in _RETRY_STATUS:
                break
        raise AskError(f"no answer from {url}: {reason}")


def read_reply(data: bytes, model: str) -> dict[str, Any]:
    """Response, its length in tokens and why it ended. An empty text is a response like any other, if the model ended it.

    Raises ValueError for a reply without them or one that the server broke off, AskError for one of another model."""
    try:
        reply: Mapping[str, Any] = json.loads(data)
        choice = reply["choices"][0]
        if not isinstance(choice["finish_reason"], str) or choice["finish_reason"] in _UNFINISHED:
            raise ValueError(f"finish_reason {choice['finish_reason']!r}")
        if reply.get("model", model) != model:
            raise AskError(
                f"the reply is of model {reply['model']!r}, not {model!r}: {data[:200].decode(errors='replace')}"
            )
        # A lone surrogate would make VLMEvalKit's JSON dump fail and fall back to a pickle that nobody reads.
        text = (choice["message"]["content"] or "").encode("utf-8", "replace").decode()
        return {
            "tokens": int(reply["usage"]["completion_tokens"]),
            "prompt_tokens": int(reply["usage"]["prompt_tokens"]),
            "finish_reason": str(choice["finish_reason"]),
            "response": text,
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
        raise ValueError(f"no whole reply ({type(err).__name__} {err}): {data[:500].decode(errors='replace')}") from err

"""One chat request to an OpenAI-compatible endpoint: sent again where that may help, and read with care."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import urllib3

from eval.session import AskError
from eval.spec import Endpoint

_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_UNFINISHED = {"abort", "error"}
"""vLLM's reasons for a response that it broke off; any other is the model's own end."""
_HOSTS = 64
"""Servers whose connections are kept open."""
_pools: dict[int, urllib3.PoolManager] = {}
_pool_lock = threading.Lock()


def pool(connections: int) -> urllib3.PoolManager:
    """One keep-alive pool for all runs. urllib3 takes no proxy from the environment, as a loopback endpoint needs."""
    with _pool_lock:
        if connections not in _pools:
            _pools[connections] = urllib3.PoolManager(num_pools=_HOSTS, maxsize=connections, block=True, retries=False)
        return _pools[connections]


def ask(endpoint: Endpoint, body: bytes, still_wanted: Callable[[], None], model: str | None = None) -> dict[str, Any]:
    """The reply to one chat request (see `read_reply`) with `seconds`. What may pass (connection, timeout, busy server, a
    broken reply) is tried again, a refusal is not. Raises AskError, and what `still_wanted` raises before another attempt."""
    url, begin, reason = f"{endpoint.url}/chat/completions", time.monotonic(), ""
    for attempt in range(endpoint.retries + 1):
        if attempt:
            time.sleep(min(2.0 ** (attempt - 1), 30.0))
            still_wanted()
        try:
            reply = pool(endpoint.workers).request(
                "POST",
                url,
                body=body,
                headers=endpoint.headers,
                timeout=urllib3.Timeout(connect=30.0, read=endpoint.timeout),
            )
        except urllib3.exceptions.HTTPError as err:
            reason = f"{type(err).__name__}: {err}"
            continue
        if reply.status == 200:
            try:
                return {**read_reply(reply.data, model), "seconds": round(time.monotonic() - begin, 3)}
            except ValueError as err:
                reason = str(err)
                continue
        reason = f"HTTP {reply.status}: {reply.data[:500].decode(errors='replace')}"
        if reply.status not in _RETRY_STATUS:
            break
    raise AskError(endpoint.hide(f"no answer from {url}: {reason}"))


def read_reply(data: bytes, model: str | None = None) -> dict[str, Any]:
    """Response, its length in tokens and why it ended. An empty text is a response like any other, if the model ended it.
    model: whose reply it must be, or None.

    Raises ValueError for a reply without them or one that the server broke off, AskError for one of another model."""
    try:
        reply: Mapping[str, Any] = json.loads(data)
        choice = reply["choices"][0]
        if not isinstance(choice["finish_reason"], str) or choice["finish_reason"] in _UNFINISHED:
            raise ValueError(f"finish_reason {choice['finish_reason']!r}")
        if model is not None and reply.get("model", model) != model:
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


def wait_for(endpoint: Endpoint, model: str, seconds: float) -> None:
    """Return once the endpoint serves `model`. Raises AskError when it does not within `seconds`, serves others, or refuses
    the key. One with a key that lists no models (404) is taken as it is."""
    end, reason = time.monotonic() + seconds, ""
    with urllib3.PoolManager(retries=False) as http:
        while True:
            try:
                reply = http.request("GET", f"{endpoint.url}/models", headers=endpoint.headers, timeout=5.0)
                if reply.status == 404 and endpoint.key:
                    return
                if reply.status == 200:
                    served = [entry["id"] for entry in json.loads(reply.data)["data"]]
                    if model not in served:
                        raise AskError(f"{endpoint.url} serves {served}, not {model}: wrong server or wrong model name")
                    return
                reason = f"HTTP {reply.status}"
                if reply.status in (401, 403):
                    raise AskError(f"{endpoint.url} refuses the key ({reason})")
            except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError) as err:
                reason = f"{type(err).__name__}: {err}"
            if time.monotonic() > end:
                raise AskError(f"no model at {endpoint.url} after {seconds:.0f} s: {reason}")
            time.sleep(0.1)

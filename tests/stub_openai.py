"""A real HTTP server that speaks enough of the OpenAI API for VLMEvalKit's adapter: answers come from a Python function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Stub:
    """`reply` maps a request to (HTTP status, response text), or to the bytes of a body. `hold_after`: later requests wait
    until `release` is set. `key`: what requests must bear. `most`: the most requests that were in flight at once."""

    model: str
    reply: Callable[[dict[str, Any]], tuple[int, str | bytes]]
    hold_after: int | None = None
    key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    flying: int = 0
    most: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def text_of(request: dict[str, Any]) -> str:
    """All text parts of the only message."""
    return "".join(part["text"] for part in request["messages"][0]["content"] if part["type"] == "text")


def images_of(request: dict[str, Any]) -> list[str]:
    """Data URLs of the only message."""
    return [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, body: dict[str, Any] | bytes) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def allowed(self) -> bool:
            return stub.key is None or self.headers["Authorization"] == f"Bearer {stub.key}"

        def do_GET(self) -> None:
            if self.path != "/health" and not self.allowed():
                return self.send(401, {"error": "Unauthorized"})
            return self.send(200, {"object": "list", "data": [{"id": stub.model, "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return self.send(401, {"error": "Unauthorized"})
            with stub.lock:
                stub.requests.append(request)
                stub.flying += 1
                stub.most = max(stub.most, stub.flying)
                stub.keys.append(self.headers["Authorization"])
                late = stub.hold_after is not None and len(stub.requests) > stub.hold_after
            if late:
                stub.release.wait(60)
            status, text = stub.reply(request)
            with stub.lock:
                stub.flying -= 1
            if isinstance(text, bytes):
                return self.send(status, text)
            if status != 200:
                return self.send(status, {"error": {"message": text}})
            words = len(text.split())
            usage = {"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1}
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = {"id": "x", "object": "chat.completion", "model": stub.model, "choices": [choice], "usage": usage}
            return self.send(200, body)

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@contextmanager
def serve(stub: Stub, port: int = 0) -> Iterator[Stub]:
    """The stub on a loopback port (0: a free one), for as long as the block lasts."""
    server = _Server(("127.0.0.1", port), _handler(stub))
    stub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.release.set()
        server.shutdown()
        server.server_close()

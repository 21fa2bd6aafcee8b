"""A headless Chromium, driven over its DevTools protocol: real clicks, keys and pointer moves, and every request it makes."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Browser:
    """One tab. requests: addresses that it asked for; problems: errors of scripts, and what the page's policy blocked."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.count, self.session = socket, 0, ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol; raises AssertionError with the browser's message."""
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params, **session}))
        while True:
            told = json.loads(self.socket.recv(timeout=60))
            if told.get("id") == self.count:
                assert "error" not in told, f"{method}: {told['error']}"
                return dict(told["result"])
            self._event(told.get("method", ""), told.get("params", {}))

    def _event(self, name: str, params: dict[str, Any]) -> None:
        self.events.append(name)
        if name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif name == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    def open(self, page: Path, width: int = 1000, height: int = 900, touch: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.evaluate("1")

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def _middle(self, selector: str) -> dict[str, float]:
        code = f"""(() => {{ const one = document.querySelector({json.dumps(selector)});
            one.scrollIntoView({{block: "center"}});
            const box = one.getBoundingClientRect(); return {{x: box.x + box.width / 2, y: box.y + box.height / 2}} }})()"""
        return dict(self.evaluate(code))

    def hover(self, selector: str) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def click(self, selector: str) -> None:
        at = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def tap(self, selector: str) -> None:
        at = self._middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str, text: str = "") -> None:
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}[name]
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    def choose(self, selector: str, label: str) -> None:
        """Picks an option by its label, as a person does in the list that the browser itself draws."""
        code = f"""(() => {{ const list = document.querySelector({json.dumps(selector)});
            list.value = [...list.options].find((one) => one.label === {json.dumps(label)}).value;
            list.dispatchEvent(new Event("change", {{bubbles: true}})) }})()"""
        self.evaluate(code)

    def picture(self, file: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; skips the test where none is installed."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on the path (any of {', '.join(NAMES)})")
    from websockets.sync.client import connect

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [found, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    proxies = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=proxies) as process:
        try:
            assert process.stderr is not None
            address = next((found[1] for line in process.stderr if (found := re.search(r"(ws://\S+)", line))), "")
            with connect(address, max_size=None, open_timeout=60) as socket:
                yield Browser(socket)
        finally:
            process.kill()

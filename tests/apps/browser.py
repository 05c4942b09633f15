"""A headless Chromium for the tests of pages, driven over its DevTools protocol; nothing of it is part of Maquette."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--disable-features=Translate",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class Page:
    """One tab. `events` holds what the browser told: requests, console messages, exceptions."""

    def __init__(self, port: int, width: int, height: int) -> None:
        from urllib.request import Request, urlopen

        from websockets.sync.client import connect

        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"), timeout=20) as answer:
            self._target = json.load(answer)
        self._socket = connect(self._target["webSocketDebuggerUrl"], ping_interval=None, max_size=None, open_timeout=20)
        self._last = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        # A tab behind another one counts as hidden: its timers are slowed down, and it has no focus.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, path: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)

    def visit(self, address: str) -> None:
        """Open an address, with the cookies that the browser has."""
        self.call("Page.navigate", url=address)

    def upload(self, selector: str, files: list[Path]) -> None:
        """Choose files in a file input of the page."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = 40.0) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, f"{code} did not come true: {self.troubles()}"
            time.sleep(0.03)

    def ready(self) -> None:
        """Until the viewer has drawn what it was last told to; its failure is ours."""
        viewer = "document.querySelector('.maquette-viewer')?.dataset ?? {}"
        self.wait(f"({viewer}).ready || ({viewer}).failed")
        assert self.run(f"({viewer}).failed ?? ''") == ""

    def picture(self) -> NDArray[np.uint8]:
        """[H, W, 3] what the tab shows."""
        from PIL import Image

        content = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, element: str, seconds: float = 20.0) -> None:
        """Click what a JavaScript expression gives, with the mouse, as soon as nothing lies over it."""
        code = f"""(() => {{
            const element = {element};
            if (!element) return null;
            element.scrollIntoView({{ block: 'center', behavior: 'instant' }});
            const box = element.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const top = element.ownerDocument.elementFromPoint(x, y);
            if (element.disabled || !top || !(element.contains(top) || top.contains(element))) return null;
            let [left, above] = [x, y];
            for (let frame = element.ownerDocument.defaultView.frameElement; frame;
                 frame = frame.ownerDocument.defaultView.frameElement) {{
                const outer = frame.getBoundingClientRect();
                [left, above] = [left + outer.x, above + outer.y];
            }}
            return [left, above];
        }})()"""
        end = time.monotonic() + seconds
        while (place := self.run(code)) is None:
            assert time.monotonic() < end, f"{element} cannot be clicked: {self.troubles()}"
            time.sleep(0.1)
        x, y = place
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], stop: tuple[float, float], button: str = "left") -> None:
        self.mouse("mousePressed", *start, button=button, clickCount=1)
        for share in (0.25, 0.5, 0.75, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, stop))
            self.mouse("mouseMoved", x, y, button=button, buttons=1)
        self.mouse("mouseReleased", *stop, button=button, clickCount=1)

    def key(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def requests(self) -> list[str]:
        """Addresses that the tab asked for."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if address != "about:blank"]

    def troubles(self) -> list[str]:
        """Exceptions, console errors and what the policy forbade."""
        bad = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                bad.append(json.dumps(params["exceptionDetails"])[:600])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                bad.append(json.dumps(params["args"])[:600])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                bad.append(params["entry"]["text"][:600])
        return bad

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium() -> Iterator[int]:
    """Runs the browser; gives the port it listens to. Skips the test where there is no browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    pytest.importorskip("websockets", reason="needs websockets, which comes with viser")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            end = time.monotonic() + 40
            while not told.is_file() or not told.read_text().strip():
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail("Chromium did not start")
                time.sleep(0.05)
            yield int(told.read_text().split()[0])
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

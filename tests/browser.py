"""A headless Chromium, driven through its DevTools protocol over a pipe."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WAIT_S = 8.0


def find_browser() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page in a browser of its own; see `browser`."""

    def __init__(self, requests: int, answers: int, downloads: Path) -> None:
        self.downloads = downloads
        self.errors: list[str] = []
        """What scripts threw, and what the page's security policy stopped."""
        self.requested: list[str] = []
        """Every address asked for."""
        self._requests, self._answers = requests, answers
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        self.call("Page.setDownloadBehavior", **behaviour)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result."""
        number = self._send(method, **params)
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, **media: str) -> None:
        """Open a page, and wait until it says that it is ready.

        Args:
            path: Of the HTML.
            width: Of the window.
            height: Of the window.
            media: Features that it prefers, as ``color_scheme="dark"``.
        """
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        features = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in media.items()
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready")

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until JavaScript in the page is true."""
        until = time.monotonic() + _WAIT_S
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < until, f"waited in vain for {expression}; {self.errors}"
            time.sleep(0.02)

    def key(self, *names: str) -> None:
        """Press keys one after the other: a letter, or a name as ``Enter``."""
        codes = {"Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}
        for name in names:
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            event = {"key": name, "windowsVirtualKeyCode": codes.get(name, ord(name[0].upper()))}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        event = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **event)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **event)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def downloaded(self, name: str) -> Path:
        """Wait for a download, and return where it is."""
        path, until = self.downloads / name, time.monotonic() + _WAIT_S
        while not path.exists():
            assert time.monotonic() < until, f"no {name}, only {os.listdir(self.downloads)}"
            self.evaluate("0")
            time.sleep(0.02)
        return path

    def screenshot(self, path: Path) -> None:
        """Save the whole page as a picture."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _send(self, method: str, **params: Any) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        return self._count

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], _WAIT_S)
            assert ready, "the browser does not answer"
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(params["exceptionDetails"]["text"])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
            case "Page.javascriptDialogOpening":
                # As a visitor would say who wants to go on; nothing else goes on before.
                self._send("Page.handleJavaScriptDialog", accept=True)
        return message


@contextlib.contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Start a browser, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        to_child, requests = os.pipe()
        answers, from_child = os.pipe()

        # The protocol reads from descriptor 3 and writes to 4; a shell puts them there.
        command = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
        arguments = [
            "--headless=new",
            "--no-sandbox",  # needs rights that containers do not give
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            f"--user-data-dir={folder}/profile",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        process = subprocess.Popen(
            ["/bin/bash", "-c", command, program, *arguments],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_child)
        os.close(from_child)
        downloads = Path(folder) / "downloads"
        downloads.mkdir()
        try:
            yield Browser(requests, answers, downloads)
        finally:
            os.close(requests)
            os.close(answers)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

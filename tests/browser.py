"""A real browser without a window, by the DevTools protocol: JSON over two pipes, so that no port is opened.

    with browser.open_() as tab:
        tab.show(path)
        tab.value("document.title")

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

PHONE = (360, 740)
DESK = (1280, 900)


@dataclass
class Tab:
    """A page. events -- what the browser has told, in the protocol's own words."""

    sink: IO[bytes]
    source: IO[bytes]
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _count: int = 0

    def tell(self, method: str, **words: Any) -> dict[str, Any]:
        """A command's answer. Raises RuntimeError."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": words}
        message |= {"sessionId": self.session} if self.session else {}
        self.sink.write(json.dumps(message).encode() + b"\0")
        self.sink.flush()
        while True:
            said = self._next()
            if said.get("id") == self._count:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                answer: dict[str, Any] = said["result"]
                return answer

    def wait(self, event: str) -> None:
        """Until the browser tells it."""
        while all(said["method"] != event for said in self.events):
            self._next()

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (sign := self.source.read(1)) != b"\0":
            if not sign:
                raise RuntimeError("the browser has ended")
            data += sign
        said: dict[str, Any] = json.loads(data)
        if "method" in said:
            self.events.append(said)
        return said

    def show(self, path: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
        """Load a file in a window of that size. scheme -- light or dark, as the user's system wants it"""
        width, height = size
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.tell("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def value(self, script: str) -> Any:
        """What an expression is in the page."""
        said = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"])
        return said["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard: Tab or Enter."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        words = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **words)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **words)

    def picture(self, path: Path) -> None:
        """All of the page as a PNG."""
        said = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(said["data"]))

    def told(self, *methods: str) -> list[dict[str, Any]]:
        return [said["params"] for said in self.events if said["method"] in methods]


@contextlib.contextmanager
def open_() -> Iterator[Tab]:
    """A browser with nothing in it, until the context ends."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: ./doit test installs it"
    with tempfile.TemporaryDirectory(prefix="browser-") as home, contextlib.ExitStack() as stack:
        its_source, sink = os.pipe()
        source, its_sink = os.pipe()
        # The browser reads from 3 and writes to 4.
        script = f'exec 3<&{its_source} 4>&{its_sink}; exec "$0" "$@"'
        line = ["bash", "-c", script, program, *FLAGS, f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(
            line,
            pass_fds=(its_source, its_sink),
            env={**os.environ, "HOME": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(its_source)
        os.close(its_sink)
        tab = Tab(stack.enter_context(os.fdopen(sink, "wb")), stack.enter_context(os.fdopen(source, "rb")))
        try:
            found = tab.tell("Target.getTargets")["targetInfos"]
            page = next(one["targetId"] for one in found if one["type"] == "page")
            tab.session = tab.tell("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                tab.tell(f"{domain}.enable")
            yield tab
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

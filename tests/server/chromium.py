"""Headless Chromium, driven by its DevTools protocol through a pipe.

https://chromedevtools.github.io/devtools-protocol/: messages are JSON that a zero byte ends, from
descriptor 3 and to descriptor 4 of the browser.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which needs user namespaces, or not to be root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
TIMEOUT_S = 20.0


class Browser:
    """A running Chromium."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser = to_browser
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._num_sent = 0
        self.pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read, args=(from_browser,), daemon=True)
        self._reader.start()

    def _read(self, from_browser: int) -> None:
        with os.fdopen(from_browser, "rb") as stream:
            rest = b""
            while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
                *messages, rest = (rest + data).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers.put(message)
                    elif page := self.pages.get(message.get("sessionId", "")):
                        page.events.append(message)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a method; AssertionError if it fails."""
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        answer = self._answers.get(timeout=TIMEOUT_S)
        assert answer["id"] == self._num_sent
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, width: int = 1280, height: int = 800) -> Page:
        """An empty page, with a storage and a memory of passwords of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, session["sessionId"])
        self.pages[page.session] = page
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        return page


class Page:
    """A tab.

    events  all that the browser has told of it
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def go(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        num_events = len(self.events)
        self.call("Page.navigate", url=url)
        self.wait_until(
            lambda: any(e["method"] == "Page.loadEventFired" for e in self.events[num_events:]),
            f"{url} does not load",
        )

    def eval(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            # As the console may: the page's own policy is not that of who looks at it.
            allowUnsafeEvalBlockedByCSP=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until an expression is true; its value."""
        return self.wait_until(lambda: self.eval(script), script)

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Until a condition is true; its value."""
        end = time.monotonic() + TIMEOUT_S
        while not (value := condition()):
            assert time.monotonic() < end, f"it does not come to be: {what}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press and release a key, by its name and its Windows code; modifiers: 8 is Shift."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **text,
            )

    def requests(self) -> list[dict[str, Any]]:
        """All requests so far, as `Network.requestWillBeSent` has them."""
        return [
            event["params"]["request"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[Any]:
        """Exceptions that nobody caught, and what the console has in red."""
        thrown = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return thrown + [entry for entry in logged if entry["level"] == "error"]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it must end when it is asked to."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    assert program, "the page is tested in Chromium: tools/setup.sh chromium installs it"
    browser_reads, to_browser = os.pipe()
    from_browser, browser_writes = os.pipe()
    # bash, as a program is given the descriptors 3 and 4 by nothing in `subprocess`.
    give = f'exec "$@" 3<&{browser_reads} 4>&{browser_writes}'
    with subprocess.Popen(
        ["bash", "-c", give, "-", program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(browser_reads, browser_writes),
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(browser_reads)
        os.close(browser_writes)
        try:
            browser = Browser(to_browser, from_browser)
            yield browser
            browser.call("Browser.close")
            assert process.wait(TIMEOUT_S) == 0
        finally:
            os.close(to_browser)
            process.kill()

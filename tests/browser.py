"""Debian's headless Chromium, driven through chromedriver with the standard library alone."""

import base64
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    not (DRIVER and BROWSER), reason="no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
)
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One page at a time."""

    def __init__(self, address: str):
        self.address = address
        options = {"binary": BROWSER, "args": ARGUMENTS}
        logs = {"browser": "ALL", "performance": "ALL"}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        session = self._post("session", {"capabilities": {"alwaysMatch": capabilities}})
        self.address = f"{address}/session/{session['sessionId']}"

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, phone: bool = False) -> None:
        """Load a file at this width."""
        scale = 2 if phone else 1
        screen = {"width": width, "height": 844 if phone else 900, "deviceScaleFactor": scale, "mobile": phone}
        self.cdp("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])
        self._post("url", {"url": path.resolve().as_uri()})

    def js(self, expression: str) -> Any:
        """The value of an expression on the page."""
        return self._post("execute/sync", {"script": f"return ({expression})", "args": []})

    def cdp(self, command: str, **params: Any) -> Any:
        """A DevTools command."""
        return self._post("goog/cdp/execute", {"cmd": command, "params": params})

    def console(self) -> list[str]:
        """What the console was told since the last call."""
        return [f"{entry['level']} {entry['message']}" for entry in self._post("se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self._post("se/log", {"type": "performance"}))
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> Path:
        """The whole page, from its top to its end."""
        found = self.cdp("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def close(self) -> None:
        """End the session."""
        urlopen(Request(self.address, method="DELETE"), timeout=20).close()

    def _post(self, command: str, content: dict[str, Any]) -> Any:
        request = Request(f"{self.address}/{command}", json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def chromium(tmp: Path):
    """A browser that ends with the block."""
    log = tmp / "chromedriver.log"
    with log.open("w") as output:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=output, stderr=output)
        try:
            browser = Browser(f"http://127.0.0.1:{_port(log, driver)}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait(timeout=10)


def _port(log: Path, driver: subprocess.Popen) -> int:
    for _ in range(100):
        words = log.read_text().split("started successfully on port ")
        if len(words) > 1:
            port = int(words[1].split(".")[0])
            try:
                urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
                return port
            except URLError:
                pass
        assert driver.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())

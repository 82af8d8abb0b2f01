"""Opening a page in headless Chromium: what the browser tests share."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = "no chromium with chromedriver on PATH: the page cannot be opened; tests/install_browser.sh"
SCREENSHOTS = Path("build/screenshots")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
OPEN_ALL = "document.querySelectorAll('details:not(.columns-menu)').forEach((one) => { one.open = true; })"
SHOW_ALL = "document.querySelectorAll('.topic').forEach((one) => one.removeAttribute('hidden'))"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def set_scheme(browser: Any, scheme: str) -> None:
    """Tell the page that the reader prefers light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_page(browser: Any, page: Path, width: int, scheme: str, topic: str = "", scripts: bool = True) -> None:
    """Open the page at a topic, a width and a colour scheme, as if for the first time."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    set_scheme(browser, scheme)
    browser.get("about:blank")
    browser.get(page.resolve().as_uri() + (f"#{topic}" if topic else ""))


def keep_screenshot(browser: Any, name: str, width: int) -> None:
    """The whole page as build/screenshots/NAME.png, cut off where it is very long."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    height = min(browser.execute_script("return document.documentElement.scrollHeight"), 6000)
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def complaints(browser: Any) -> list[str]:
    """What the browser's console says at the levels of warning and error."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

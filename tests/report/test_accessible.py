"""Who can read the page: without scripts, on paper, with a keyboard or a screen reader, with little contrast."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from serveproof.report.topics import TOPICS
from tests.report.browser import OPEN_ALL, SHOW_ALL, open_page

AXE = Path("build/axe/package/axe.min.js")
RUN_AXE = """const done = arguments[0];
axe.run({ include: ['body'] }).then(
  (found) => done(found.violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 120))])),
  (error) => done([[String(error)]]));"""


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: tests/install_axe.sh fetches it, where npm is")
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light")])
def test_axe_finds_nothing(browser: Any, whole_page: Path, width: int, scheme: str) -> None:
    open_page(browser, whole_page, width, scheme)
    browser.execute_script(SHOW_ALL)
    browser.execute_script(OPEN_ALL)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    assert browser.execute_async_script(RUN_AXE) == []


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: tests/install_axe.sh fetches it, where npm is")
def test_axe_would_find_something(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1440, "light")
    browser.execute_script("document.querySelector('.plot').removeAttribute('aria-label')")
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    assert [one[0] for one in browser.execute_async_script(RUN_AXE)] == ["role-img-alt"]


def _palettes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet, light and dark."""
    css = (resources.files("serveproof.report") / "templates" / "base.css").read_text(encoding="utf-8")
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)")
    return {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part.split("* {")[0]))
        for name, part in (("light", light), ("dark", dark))
    }


def _luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_stands_out_from_every_ground(scheme: str) -> None:
    palette = _palettes()[scheme]
    pairs = [*product(("ink", "muted", "link"), ("paper", "panel")), *product(("good", "bad", "warn"), ("paper",)),
             ("bad", "bad-wash"), ("ink", "bad-wash"), ("ink", "warn-wash"), ("muted", "bad-wash")]  # fmt: skip
    for text, ground in pairs:
        lighter, darker = sorted((_luminance(palette[text]), _luminance(palette[ground])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{text} on {ground}"


def test_without_scripts_every_topic_stands_one_after_another(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light", scripts=False)
    try:
        root = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 1})["root"]["nodeId"]

        def heights(selector: str) -> list[float]:
            found = browser.execute_cdp_cmd("DOM.querySelectorAll", {"nodeId": root, "selector": selector})["nodeIds"]
            return [browser.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": one})["model"]["height"] for one in found]

        topics = heights(".topic")
        assert len(topics) == len(TOPICS)
        assert min(topics) > 40
        assert min(heights("#overview .plot svg.wide, #ladder .plot svg.wide, #telemetry .plot svg.wide")) > 40
        assert min(heights(".stats thead th")) > 10, "no column is hidden"
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_prints_every_topic(browser: Any, whole_page: Path, tmp_path: Path) -> None:
    open_page(browser, whole_page, 1280, "dark", "serving")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False, "preferCSSPageSize": True})
    file = tmp_path / "report.pdf"
    file.write_bytes(base64.b64decode(printed["data"]))
    assert file.read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext") is None:
        pytest.skip("printed, but no pdftotext to read it: apt-get install poppler-utils")
    text = subprocess.run(["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True, check=True).stdout
    for topic in TOPICS[1:]:
        assert re.search(rf"^\f?\s*{topic.title}$", text, re.MULTILINE), topic.title
    assert "optimizations pay here" in text
    assert "speedup (×, log scale)" in text, "charts are printed"
    assert "must fail" in text, "boxes that were closed are printed open"


def test_the_first_stop_of_the_keyboard_leads_past_the_topics(browser: Any, whole_page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, whole_page, 1280, "light")
    browser.execute_script("document.activeElement.blur()")
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"

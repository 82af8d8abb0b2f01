"""The report opened from disk in headless Chromium: desktop and phone width, light and dark; screenshots are kept."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serveproof.report.data import collect
from serveproof.report.render import render
from tests.report import fake_profiles, fake_results

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no chromium with chromedriver on PATH: the page cannot be opened"
)
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
DRAWN = "return document.documentElement.classList.contains('charts-drawn')"
SIZES = """return [...document.querySelectorAll('figure.chart')].map(figure => {
  const box = figure.querySelector('.plot svg')?.getBoundingClientRect();
  return [figure.querySelector('.chart-title').textContent, box ? box.width : 0, box ? box.height : 0];
})"""
INK = "return getComputedStyle(document.querySelector('.plot svg .role-axis-title text')).fill"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests of this module."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def set_scheme(browser: Any, scheme: str) -> None:
    """Tell the page that the reader prefers light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_page(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open the page at that width and colour scheme and wait until its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    set_scheme(browser, scheme)
    browser.get(page.resolve().as_uri())
    WebDriverWait(browser, 15).until(lambda driver: driver.execute_script(DRAWN))


def keep_screenshots(browser: Any, name: str, width: int) -> None:
    """The whole page in pieces of a readable height."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for old in SCREENSHOTS.glob(f"{name}-*.png"):
        old.unlink()
    total = browser.execute_script("return document.documentElement.scrollHeight")
    piece = 3200
    for number, top in enumerate(range(0, total, piece)):
        clip = {"x": 0, "y": top, "width": width, "height": min(piece, total - top), "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        (SCREENSHOTS / f"{name}-{number:02d}.png").write_bytes(base64.b64decode(shot["data"]))


def complaints(browser: Any) -> list[str]:
    """What the browser's console says at the levels of warning and error."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_draws_everything(browser: Any, report_page: Path, name: str, width: int, scheme: str) -> None:
    open_page(browser, report_page, width, scheme)
    assert complaints(browser) == []
    sizes = browser.execute_script(SIZES)
    assert len(sizes) > 8
    assert [title for title, wide, high in sizes if wide < 200 or high < 40 or wide > width] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    keep_screenshots(browser, f"{name}-{scheme}", width)


def test_charts_follow_the_scheme_while_open(browser: Any, report_page: Path) -> None:
    open_page(browser, report_page, 1280, "light")
    assert browser.execute_script(INK) == "rgb(28, 31, 35)"
    set_scheme(browser, "dark")
    assert browser.execute_script(INK) == "rgb(230, 232, 235)"
    assert browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)") == []


def test_hostile_text_runs_nothing(browser: Any, hostile_page: Path) -> None:
    open_page(browser, hostile_page, 390, "light")
    assert browser.execute_script("return window.stolen ?? null") is None
    assert complaints(browser) == []
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script("return document.querySelectorAll('.plot svg').length") > 8
    assert fake_results.HOSTILE[:30] in browser.execute_script("return document.querySelector('.verdicts').textContent")


@pytest.fixture(scope="module")
def profiled_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a pair's and a decoder's profile."""
    folder = fake_results.write_machine(tmp_path_factory.mktemp("profiled") / "cpu")
    fake_profiles.write_pair(folder, "flash_sdp", "causal")
    fake_profiles.write_decoder(folder)
    page = folder / "index.html"
    page.write_text(render([collect(folder)], fake_results.provenance()), encoding="utf-8")
    return page


@pytest.mark.parametrize("width", [1280, 390])
def test_a_profile_that_is_opened_is_drawn(browser: Any, profiled_page: Path, width: int) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(browser, profiled_page, width, "light")
    browser.execute_script("document.querySelectorAll('details.profile').forEach((one) => { one.open = true; })")
    narrow = "return [...document.querySelectorAll('.profile .plot svg')].filter(one => one.clientWidth < 200).length"
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(narrow) == 0)
    assert browser.execute_script("return document.querySelectorAll('.profile .plot svg').length") == 3 + 4
    assert complaints(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    keep_screenshots(browser, f"profile-{width}", width)


def test_a_heading_sorts_its_table(browser: Any, profiled_page: Path) -> None:
    open_page(browser, profiled_page, 1280, "light")
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    table = browser.find_element("css selector", "table.sortable")
    share = table.find_elements("css selector", "th button")[3]

    def first_cells() -> list[str]:
        return [row.text.split()[0] for row in table.find_elements("css selector", "tbody tr")]

    assert first_cells() == ["kernels/x.py(3):", "gemm<float>", "aten::odd"]
    share.click()
    share.click()
    assert first_cells() == ["aten::odd", "gemm<float>", "kernels/x.py(3):"]
    assert table.find_elements("css selector", "th")[3].get_attribute("aria-sort") == "ascending"

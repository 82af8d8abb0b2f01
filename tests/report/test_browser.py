"""The report opened from disk in headless Chromium: every topic at desktop and phone width, light and dark.

Screenshots are kept in build/screenshots/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serveproof.report.topics import TOPICS
from tests.report import fake_results
from tests.report.browser import OPEN_ALL, OVERFLOW, complaints, keep_screenshot, open_page, set_scheme

# of every chart in the topic that is shown: its title, and width and height of the one drawing that is visible
SIZES = """return [...document.querySelectorAll('.topic:not([hidden]) figure.chart')].map((figure) => {
  const boxes = [...figure.querySelectorAll('.plot svg')].map((one) => one.getBoundingClientRect());
  const seen = boxes.filter((one) => one.width);
  return [figure.querySelector('.chart-title').textContent, seen.length, seen[0]?.width ?? 0, seen[0]?.height ?? 0];
})"""
INK = "return getComputedStyle(document.querySelector('.plot svg .axis-title text')).fill"
SHOWN = "return [...document.querySelectorAll('.topic:not([hidden])')].map((one) => one.id)"
HIDDEN_HEIGHT = """return [...document.querySelectorAll('.topic[hidden]')].reduce(
  (sum, one) => sum + one.getBoundingClientRect().height, 0)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1440), ("phone", 390)])
def test_draws_every_topic(browser: Any, whole_page: Path, name: str, width: int, scheme: str) -> None:
    charts = 0
    for topic in TOPICS:
        open_page(browser, whole_page, width, scheme, topic.id)
        assert browser.execute_script(SHOWN) == [topic.id]
        assert browser.execute_script(HIDDEN_HEIGHT) == 0, topic.id
        browser.execute_script(OPEN_ALL)
        sizes = browser.execute_script(SIZES)
        wrong = [one for one in sizes if one[1] != 1 or one[2] < 200 or one[3] < 40 or one[2] > width]
        assert wrong == [], topic.id
        assert browser.execute_script(OVERFLOW) <= 0, topic.id
        charts += len(sizes)
        # As a reader meets it: with the boxes as they come.
        open_page(browser, whole_page, width, scheme, topic.id)
        keep_screenshot(browser, f"{topic.id}-{name}-{scheme}", width)
    assert charts > 25
    assert complaints(browser) == []


def test_charts_follow_the_scheme_while_open(browser: Any, report_page: Path) -> None:
    open_page(browser, report_page, 1280, "light")
    assert browser.execute_script(INK) == "rgb(28, 31, 35)"
    set_scheme(browser, "dark")
    assert browser.execute_script(INK) == "rgb(230, 232, 235)"
    assert browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)") == []


def test_hostile_text_runs_nothing(browser: Any, hostile_page: Path) -> None:
    for topic in TOPICS:
        open_page(browser, hostile_page, 390, "light", topic.id)
        browser.execute_script(OPEN_ALL)
        assert browser.execute_script(OVERFLOW) <= 0, topic.id
    assert browser.execute_script("return window.stolen ?? null") is None
    assert complaints(browser) == []
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.querySelectorAll('.plot svg').length") > 60
    assert fake_results.HOSTILE[:30] in browser.execute_script("return document.querySelector('.verdicts').textContent")


@pytest.mark.parametrize("page", ["whole_page", "many_page"])
def test_opens_in_under_two_seconds(browser: Any, page: str, request: pytest.FixtureRequest) -> None:
    found: Path = request.getfixturevalue(page)
    took_ms = []
    for _ in range(3):
        open_page(browser, found, 1440, "light")
        took_ms.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    # The best of three: this machine may have other work.
    assert 0 < min(took_ms) < 2000
    assert found.stat().st_size < 3_000_000

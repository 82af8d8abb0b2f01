"""Using the page in a real browser: topics, sorting, filtering, columns, opening, saving a chart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.report.browser import complaints, open_page
from tests.report.test_browser import SHOWN


def test_a_link_opens_its_topic_and_says_so(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light")
    link = browser.find_element("css selector", "nav a[href='#serving']")
    link.send_keys("\n")
    assert browser.execute_script(SHOWN) == ["serving"]
    assert link.get_attribute("aria-current") == "page"
    assert browser.execute_script("return document.activeElement.id") == "serving"
    browser.back()
    assert browser.execute_script(SHOWN) == ["overview"]


def test_a_pair_of_the_table_leads_to_its_box_which_opens(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light")
    browser.find_element("css selector", ".stats tbody a[href='#m0-pair1']").send_keys("\n")
    assert browser.execute_script(SHOWN) == ["pairs"]
    body = browser.find_element("id", "m0-pair1")
    assert body.is_displayed()
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", body)
    assert 0 <= top < 900


def test_the_browsers_search_reaches_topics_that_are_not_shown(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light")
    browser.execute_script("document.getElementById('method').dispatchEvent(new Event('beforematch'))")
    assert browser.execute_script(SHOWN) == ["method"]


def test_a_heading_sorts_its_table(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light", "profiles")
    browser.execute_script("document.querySelectorAll('#profiles details').forEach((one) => { one.open = true; })")
    table = browser.find_element("css selector", "#profiles table.sortable")
    share = table.find_elements("css selector", "th button")[3]

    def first_cells() -> list[str]:
        return [row.text.split()[0] for row in table.find_elements("css selector", "tbody tr")]

    assert first_cells() == ["kernels/x.py(3):", "gemm<float>", "aten::odd"]
    share.click()
    share.click()
    assert first_cells() == ["aten::odd", "gemm<float>", "kernels/x.py(3):"]
    assert table.find_elements("css selector", "th")[3].get_attribute("aria-sort") == "ascending"


def test_the_general_statistics_sort_by_number_filter_and_hide_columns(browser: Any, many_page: Path) -> None:
    open_page(browser, many_page, 1280, "light")
    table = browser.find_element("css selector", "table.stats")
    heads = [one.text for one in table.find_elements("css selector", "thead th") if one.is_displayed()]
    assert heads[:4] == ["pair", "verdict", "cases that pay", "speedup"]
    assert "took" not in heads, "asked for, not there from the start"
    table.find_elements("css selector", "th button")[3].click()
    first = table.find_element("css selector", "tbody tr")
    assert first.find_element("css selector", "th").text == "pair_499"
    search = browser.find_element("css selector", ".tabletools input[type=search]")
    search.send_keys("skipped")
    shown = browser.execute_script("return document.querySelectorAll('.stats tbody tr:not([hidden])').length")
    assert shown == 46
    assert browser.find_element("css selector", ".tabletools [role=status]").text == "46 of 500"
    menu = browser.find_element("css selector", ".columns-menu summary")
    menu.click()
    labels = {one.text: one for one in browser.find_elements("css selector", ".columns-menu label")}
    labels["took"].click()
    labels["speedup"].click()
    heads = [one.text for one in table.find_elements("css selector", "thead th") if one.is_displayed()]
    assert "took" in heads
    assert not any(one.startswith("speedup") for one in heads)
    assert complaints(browser) == []


def test_every_pair_opens_with_one_button(browser: Any, whole_page: Path) -> None:
    open_page(browser, whole_page, 1280, "light", "pairs")
    button = browser.find_element("css selector", ".pairs-tools button")
    closed = "return document.querySelectorAll('#m0-pairs .pairbox:not([open])').length"
    assert browser.execute_script(closed) > 3
    button.click()
    assert browser.execute_script(closed) == 0
    assert button.text == "Close all"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_chart_is_saved_as_a_file_of_its_own(browser: Any, whole_page: Path, tmp_path: Path, width: int) -> None:
    open_page(browser, whole_page, width, "dark")
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    browser.find_element("css selector", "#overview figure.chart .save").click()
    end = time.monotonic() + 10
    while not (saved := [*tmp_path.glob("*.svg")]) and time.monotonic() < end:
        time.sleep(0.05)
    text = saved[0].read_text(encoding="utf-8")
    drawing = ElementTree.fromstring(text)  # noqa: S314 - our own page's
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawing.get("width") == ("560" if width > 640 else "350"), "the drawing that is shown"
    assert "var(" not in text, "its colours must not need the page"
    assert "#14171a" in text, "the paper of the scheme that is shown"
    assert complaints(browser) == []

"""500 pairs: the page is drawn in time, stays small, and says what it folded."""

from __future__ import annotations

import time
from pathlib import Path

from serveproof.report.data import collect
from serveproof.report.render import render
from serveproof.report.views import MOST_CHARTS_OF_PAIRS, MOST_PAIRS_SHOWN
from tests.report import fake_machine, fake_results
from tests.report.test_render import Page


def test_500_pairs(tmp_path: Path) -> None:
    folder = fake_machine.write_many(tmp_path / "cpu", 500)
    before_s = time.process_time()
    text = render([collect(folder)], fake_results.provenance())
    # CPU seconds of every thread: on two free cores no more seconds than these pass.
    assert time.process_time() - before_s < 10
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert page.open == []
    assert (
        page.count("details", **{"class": "pairbox quiet"}) + page.count("details", **{"class": "pairbox good"}) == 80
    )
    assert page.count("figure", **{"class": "chart"}) <= MOST_CHARTS_OF_PAIRS + 1
    stats = text[text.index('<table class="stats') :].partition("</table>")[0]
    assert stats.count("<tr") == 501, "every pair has its row"
    words = " ".join(" ".join(page.text).split())
    assert f"{500 - MOST_PAIRS_SHOWN} of 500 pairs have rows above and no section here" in words
    assert "No charts here: of so many pairs" in words
    assert "more cases, whose verdicts ask less for a look" in words


def test_those_that_ask_for_a_look_come_first(tmp_path: Path) -> None:
    folder = fake_machine.write_many(tmp_path / "cpu", 120)
    broken = fake_results.broken("one", "error", "Traceback: out of luck")
    fake_results.write_pair(folder, "pair_119", [broken], [])
    text = render([collect(folder)], fake_results.provenance())
    assert 'id="m0-pair119"' in text, "the last of them, and it failed"

"""Energy by NVML's counter: of the window alone, between two looks by a straight line."""

from __future__ import annotations

import pytest

from serveproof.load_test.watch import Watch
from serveproof.telemetry.scrape import Sample


def test_joules_are_of_the_window() -> None:
    start_ns = 10**9
    looks = [(0, 100.0), (1, 200.0), (2, 400.0), (3, 1000.0)]
    watch = Watch(
        "http://127.0.0.1:9", rows=[(start_ns + at * 10**9, Sample(running=at), joules) for at, joules in looks]
    )
    assert watch.joules(start_ns, 0.0, 3.0) == (900.0, "")
    assert watch.joules(start_ns, 0.5, 2.5) == (pytest.approx(550.0), "")
    table = watch.table(1, start_ns, [])
    assert table["power_w"].to_list() == [None, 100.0, 200.0, 600.0]
    assert table["running"].to_list() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("url", "told"), [("http://127.0.0.1:9", "no GPU with an energy counter"), ("http://far:9", "on another machine")]
)
def test_without_a_counter_there_is_a_reason_and_no_figure(url: str, told: str) -> None:
    joules, reason = Watch(url, rows=[(0, Sample(), None), (10**9, Sample(), None)]).joules(0, 0.0, 1.0)
    assert joules is None
    assert told in reason


def test_a_server_that_does_not_answer_is_a_row_of_nothing() -> None:
    watch = Watch("http://127.0.0.1:9")
    watch.start()
    watch.stop()
    assert {one.running for _, one, _ in watch.rows} == {None}

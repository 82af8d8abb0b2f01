"""Figures as text, and on scales."""

from __future__ import annotations

import pytest

from serveproof.report import charts, numbers
from serveproof.results import Estimate


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.345, "ms", "12.3 ms"),
        (0.0123456, "ms", "12.3 µs"),
        (0.9997, "ms", "1.00 ms"),
        (2500.0, "ms", "2.50 s"),
        (0.0, "ms", "0 ms"),
        (141e9, "bytes", "141 GB"),
        (21.7e9, "bytes/s", "21.7 GB/s"),
        (4.8e12, "bytes/s", "4.80 TB/s"),
        (402e9, "flop/s", "402 GFLOP/s"),
        (989.4e12, "flop/s", "989 TFLOP/s"),
        (1.8451, "x", "1.85×"),
        (1.234, "%", "1.23 %"),
        (18234, "faults", "18 234 faults"),
        (float("inf"), "ms", "∞ s"),
    ],
)
def test_figure(value: float, unit: str, text: str) -> None:
    assert numbers.figure(value, unit).replace("\u00a0", " ").replace("\u202f", " ") == text


def test_interval_has_the_decimals_that_it_needs() -> None:
    assert numbers.interval(1.8451, 1.8, 1.9) == ("1.85", "1.80", "1.90")
    assert numbers.interval(1.8451, 1.8449, 1.8453) == ("1.8451", "1.8449", "1.8453")
    assert numbers.interval(0.0, 0.0, 0.0) == ("0", "0", "0")


def test_parts_keep_one_unit_for_value_and_interval() -> None:
    estimate = Estimate(value=0.998, low=0.95, high=1.05, unit="ms")
    assert numbers.parts(estimate) == ("998\u00a0µs", "[950, 1\u202f050]")


def test_signed_has_no_signed_zero() -> None:
    assert [numbers.signed(value, 2) for value in (1.0, -1.0, -0.001, 0.0)] == ["+1.00", "−1.00", "0.00", "0.00"]


def test_bounds_in_words() -> None:
    assert numbers.bounds(1.5, 2.0) == "[1.50, 2.00]"
    assert numbers.bounds(None, 2.0) == "at most 2"
    assert numbers.bounds(1.2, None) == "at least 1.20"
    assert numbers.bounds(None, None) == "none"


def test_moment_leaves_foreign_text_alone() -> None:
    assert numbers.moment("2026-01-02T03:04:05Z") == "2026-01-02 03:04 UTC"
    assert numbers.moment("yesterday") == "yesterday"


def test_one_precision_far_off_does_not_hide_what_the_others_cost() -> None:
    near, ticks = charts.increases([-0.1, 0.0, 1.6, 39.0], 10)
    assert near.to_dict() == {"padding": 10, "zero": True}
    assert ticks == {"tickCount": 6}
    far, ticks = charts.increases([-0.1, 0.0, 1.6, 512.0], 10)
    assert far.to_dict() == {"constant": 2, "padding": 10, "type": "symlog"}
    assert {0, 2, 100} <= set(ticks["values"])

"""The least time a case can take, and what is too fast to be true."""

from __future__ import annotations

import pytest

from serveproof.bench import roofline
from serveproof.errors import UserError
from serveproof.results import Ceilings, Estimate

CEILINGS = Ceilings(2e9, 1e9, {"float32": 1e12}, "made up")


def test_the_larger_of_two_times_binds() -> None:
    assert roofline.roofline_ms({"flops": 1e9, "bytes": 1e9, "dtype": "float32"}, CEILINGS) == (1000.0, "bytes")
    assert roofline.roofline_ms({"flops": 1e12, "bytes": 1e6, "dtype": "float32"}, CEILINGS) == (1000.0, "flops")


def test_a_dtype_without_a_ceiling_is_named() -> None:
    with pytest.raises(UserError, match=r"float16.*float32"):
        roofline.roofline_ms({"flops": 1, "bytes": 1, "dtype": "float16"}, CEILINGS)


@pytest.mark.parametrize(
    ("low", "device", "expected"),
    [(0.9, "cuda", False), (1.04, "cuda", False), (1.06, "cuda", True), (1.4, "cpu", False), (1.6, "cpu", True)],
)
def test_too_fast_needs_the_whole_interval_beyond_the_margin(low: float, device: str, expected: bool) -> None:
    assert roofline.too_fast(Estimate(1.8, low, 2.0, "of roofline"), device) is expected

"""Intervals: do they cover as they say, on known distributions, with few processes and few rounds?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.bench import statistics


def coverage(processes: int, rounds: int, between: float, within: float, heavy: bool = False, runs: int = 300) -> float:
    """Share of simulated runs whose interval holds the true logarithm, 0."""
    generator = np.random.default_rng(5)
    hits = 0
    for run in range(runs):
        noise = generator.standard_t(2, (processes, rounds)) if heavy else generator.normal(0, 1, (processes, rounds))
        logs = generator.normal(0, between, (processes, 1)) + within * noise
        centre, half = statistics.interval_of_logs(list(logs), seed=run)
        hits += abs(centre) <= half
    return hits / runs


@pytest.mark.parametrize(
    ("processes", "rounds", "between", "within", "heavy"),
    [
        (5, 10, 0.05, 0.01, False),  # processes differ: the hard case
        (5, 10, 0.03, 0.05, False),
        (5, 10, 0.0, 0.05, False),  # only rounds vary: conservative
        (5, 10, 0.02, 0.05, True),  # spikes, as on a shared CPU
        (3, 10, 0.05, 0.02, False),
        (1, 20, 0.0, 0.05, False),
    ],
)
def test_a_95_percent_interval_covers(processes: int, rounds: int, between: float, within: float, heavy: bool) -> None:
    # 300 runs at 95 %: three standard errors are 3.8 points. Over-covering is allowed, under-covering is not.
    assert coverage(processes, rounds, between, within, heavy) >= 0.912


def test_the_interval_is_not_vacuous() -> None:
    generator = np.random.default_rng(0)
    _, half = statistics.interval_of_logs(list(generator.normal(0, 0.05, (5, 10))))
    assert half < 0.05


positive = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(positive, min_size=3, max_size=6), min_size=2, max_size=5), st.floats(1e-3, 1e3))
def test_scale_is_only_a_unit(values: list[list[float]], factor: float) -> None:
    groups = [np.array(group) for group in values]
    plain = statistics.estimate_positive(groups, "ms")
    scaled = statistics.estimate_positive([factor * group for group in groups], "ms")
    assert plain.low <= plain.value <= plain.high
    for field in ("value", "low", "high"):
        assert getattr(scaled, field) == pytest.approx(factor * getattr(plain, field), rel=1e-6)


def test_inverting_swaps_the_ends() -> None:
    time = statistics.estimate_positive([np.array([1.9, 2.0, 2.2]), np.array([2.0, 2.1, 1.8])], "ms")
    rate = statistics.inverted(time, 1000.0, "token/s")
    assert rate.low == pytest.approx(1000 / time.high)
    assert rate.low < rate.value < rate.high
    assert rate.unit == "token/s"


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        statistics.interval_of_logs([np.array([0.1])])

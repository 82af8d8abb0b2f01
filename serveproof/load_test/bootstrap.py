"""Intervals within one run. Neighbouring requests share a queue, so they are drawn in blocks (circular block bootstrap:
Politis and Romano 1992); independent draws would give intervals that are far too narrow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serveproof.results import Estimate

Floats = npt.NDArray[np.float64]
RESAMPLES = 400
FEWEST = 8


def block_length(values: Floats) -> int:
    """How long a block must be: the first lag from which on the autocorrelation is noise (|r| < 2/sqrt(n)), doubled,
    at least n^(1/3), at most a fifth of the run (Politis and White, Econometric Reviews 23(1), 2004, take the same
    lag)."""
    n = len(values)
    least, most = int(np.ceil(n ** (1 / 3))), max(1, n // 5)
    centred = values - values.mean()
    variance = float((centred * centred).mean())
    if variance == 0 or most <= least:
        return min(least, most)
    for lag in range(1, most):
        if abs(float((centred[:-lag] * centred[lag:]).sum()) / (n * variance)) < 2 / np.sqrt(n):
            return min(max(least, 2 * lag), most)
    return most


def interval(
    values: Floats, statistic: Callable[[Floats], float], unit: str, *, confidence: float = 0.95, seed: int = 0
) -> Estimate | None:
    """The statistic of values in the order of their arrival, with its percentile interval; None for fewer than 8.

    statistic: of a one-dimensional array. Percentile intervals of few blocks are too narrow by a little; the coverage
    that a simulation found is in docs/load_test.md.
    """
    n = len(values)
    if n < FEWEST:
        return None
    length = block_length(values)
    generator = np.random.default_rng(seed)
    blocks = -(-n // length)
    starts = generator.integers(0, n, (RESAMPLES, blocks))
    picks = (starts[:, :, None] + np.arange(length)[None, None, :]).reshape(RESAMPLES, -1)[:, :n] % n
    found = np.asarray([statistic(values[row]) for row in picks])
    value = float(statistic(values))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), unit, confidence)

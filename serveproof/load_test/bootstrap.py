"""Intervals within one run. Neighbouring requests share a queue, so they are drawn in blocks (circular block bootstrap:
Politis and Romano 1992); independent draws would give intervals that are far too narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    if not centred.any() or most <= least:
        return min(least, most)
    spectrum = np.fft.rfft(centred, 2 * n)  # all lags at once: a run has hundreds of thousands of gaps between tokens
    products = np.fft.irfft(spectrum * spectrum.conj(), 2 * n)[:most]
    noise = np.flatnonzero(np.abs(products[1:]) < 2 / np.sqrt(n) * products[0])
    return min(max(least, 2 * (int(noise[0]) + 1)), most) if len(noise) else most


def _starts(n: int, length: int, seed: int) -> npt.NDArray[np.int64]:
    """Where each block of each resample begins."""
    return np.random.default_rng(seed).integers(0, n, (RESAMPLES, -(-n // length)))


def _estimate(value: float, found: Floats, unit: str, confidence: float) -> Estimate:
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), unit, confidence)


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
    ahead = np.arange(length)
    found = np.asarray(
        [statistic(values[(row[:, None] + ahead).ravel()[:n] % n]) for row in _starts(n, length, seed)],
        dtype=np.float64,
    )
    return _estimate(float(statistic(values)), found, unit, confidence)


def quantiles(
    values: Floats, shares: Sequence[float], unit: str, *, confidence: float = 0.95, seed: int = 0
) -> list[Estimate] | None:
    """What `interval` gives for np.quantile at each share, from one sort: a resample is how often it has each value."""
    n = len(values)
    if n < FEWEST:
        return None
    length = block_length(values)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    ranks = (n - 1) * np.asarray(shares, dtype=np.float64)
    below = np.floor(ranks).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    last = n - length * (-(-n // length) - 1)  # the last block is cut, so that a resample has n values
    found = np.empty((RESAMPLES, len(ranks)))
    for number, starts in enumerate(_starts(n, length, seed)):
        ends = starts + length
        ends[-1] = starts[-1] + last
        steps = np.bincount(starts, minlength=2 * n + 1) - np.bincount(ends, minlength=2 * n + 1)
        circle = np.cumsum(steps[: 2 * n])
        upto = np.cumsum((circle[:n] + circle[n:])[order])
        low, high = (ascending[np.searchsorted(upto, rank, side="right")] for rank in (below, above))
        found[number] = low + (high - low) * (ranks - below)
    return [
        _estimate(float(np.quantile(values, share)), found[:, at], unit, confidence) for at, share in enumerate(shares)
    ]

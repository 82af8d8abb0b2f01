"""Estimates with intervals from samples taken in several processes, several rounds each.

Rounds of one process share its memory layout, clocks and neighbours, so they are not independent: the process is the
unit. Per process the median over rounds of the logarithm; the estimate is the mean of these over processes. The
interval: a hierarchical bootstrap (processes with replacement, then rounds within each) gives the standard error,
corrected for resampling only n processes by sqrt(n/(n-1)), with Student's t quantile on n-1 degrees of freedom
(Hesterberg, 'What Teachers Should Know About the Bootstrap', The American Statistician 69(4), 2015, section 4: the
t interval with bootstrap standard error). With one process the rounds are the units, which is said in the report.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from serveproof.results import Estimate

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000


@lru_cache
def t_quantile(confidence: float, degrees: int) -> float:
    """Two-sided Student t quantile."""
    from scipy.stats import t  # slow to import: only when an interval is asked for

    return float(t.ppf(0.5 + confidence / 2, degrees))


def interval_of_logs(log_values_by_process: list[Floats], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """(estimate, half-width) of the logarithm. Each array holds one process's rounds; at least two values in all."""
    groups = [np.asarray(group, dtype=np.float64) for group in log_values_by_process if len(group)]
    if sum(map(len, groups)) < 2:
        raise ValueError("an interval needs at least two rounds")
    generator = np.random.default_rng(seed)
    if len(groups) == 1:
        units, group = len(groups[0]), groups[0]
        picks = generator.integers(0, units, (RESAMPLES, units))
        estimate, replicates = float(np.median(group)), np.median(group[picks], axis=1)
    else:
        units = len(groups)
        medians = np.stack(
            [np.median(g[generator.integers(0, len(g), (RESAMPLES, units, len(g)))], axis=2) for g in groups], axis=-1
        )  # (resample, place, process)
        chosen = generator.integers(0, units, (RESAMPLES, units))
        drawn = np.take_along_axis(medians, chosen[:, :, None], axis=2)[:, :, 0]
        estimate, replicates = float(np.mean([np.median(g) for g in groups])), drawn.mean(axis=1)
    standard_error = float(replicates.std(ddof=1)) * (units / (units - 1)) ** 0.5
    return estimate, t_quantile(confidence, units - 1) * standard_error


def estimate_positive(values_by_process: list[Floats], unit: str, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Estimate of a positive figure (a time, a ratio), on the logarithmic scale."""
    centre, half = interval_of_logs([np.log(group) for group in values_by_process], confidence=confidence, seed=seed)
    return Estimate(
        value=float(np.exp(centre)),
        low=float(np.exp(centre - half)),
        high=float(np.exp(centre + half)),
        unit=unit,
        confidence=confidence,
    )


def scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    """The estimate of factor * figure, factor positive."""
    return Estimate(
        value=estimate.value * factor,
        low=estimate.low * factor,
        high=estimate.high * factor,
        unit=unit,
        confidence=estimate.confidence,
    )


def inverted(estimate: Estimate, factor: float, unit: str) -> Estimate:
    """The estimate of factor / figure, factor positive: throughput and roofline fraction from a time."""
    return Estimate(
        value=factor / estimate.value,
        low=factor / estimate.high,
        high=factor / estimate.low,
        unit=unit,
        confidence=estimate.confidence,
    )

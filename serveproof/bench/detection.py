"""How often would a slowdown be called one? Simulated from recorded samples, with the harness's own verdicts.

Each simulated run draws processes with replacement, and rounds within each, from the samples of a real run, multiplies
the optimized side's times by 1 + slowdown, and is judged as compare.py would, against an expectation made from another
simulated run without slowdown: the A/A noise of both runs is in the rates.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

from serveproof import expectations
from serveproof.bench import statistics
from serveproof.bench.measure import ratios_by_process
from serveproof.results import Estimate

SLOWDOWNS = (0.0, 0.02, 0.05, 0.10, 0.20)


def redraw(ratios: list[statistics.Floats], generator: np.random.Generator) -> list[statistics.Floats]:
    """One simulated run: as many processes and rounds as were recorded, drawn with replacement."""
    chosen = generator.integers(0, len(ratios), len(ratios))
    return [ratios[i][generator.integers(0, len(ratios[i]), len(ratios[i]))] for i in chosen]


def verdict(expected: Estimate, found: Estimate, device: str) -> str:
    """What compare.py would say of `found` if `expected` had been written as the expectation."""
    lower, upper = expectations.bounds(expected, device)
    return expectations.judge_interval(found, lower, upper, higher_is_better=True)[0]


def rates(samples: pl.DataFrame, case: str, device: str, runs: int = 200, seed: int = 0) -> dict[float, Counter[str]]:
    """Per slowdown, how many of `runs` simulated runs got each verdict."""
    recorded = ratios_by_process(samples, case)
    found: dict[float, Counter[str]] = {}
    for slowdown in SLOWDOWNS:
        generator = np.random.default_rng(seed)
        found[slowdown] = Counter(
            verdict(
                statistics.estimate_positive(redraw(recorded, generator), "x", seed=2 * run),
                statistics.estimate_positive(
                    [group / (1 + slowdown) for group in redraw(recorded, generator)], "x", seed=2 * run + 1
                ),
                device,
            )
            for run in range(runs)
        )
    return found

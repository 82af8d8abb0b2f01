"""How often would a slowdown be called one? Simulated from recorded samples, with the harness's own verdicts.

Each simulated run draws processes with replacement, and rounds within each, from the samples of a real run, multiplies
the optimized side's times by 1 + slowdown, and is judged as compare.py would, against an expectation made from another
simulated run without slowdown: the A/A noise of both runs is in the rates. So for each figure that is judged.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

from serveproof import expectations
from serveproof.bench import statistics
from serveproof.bench.measure import ratios_by_process, times_by_process
from serveproof.results import Estimate
from serveproof.tables import GPU_BUSY

SLOWDOWNS = (0.0, 0.02, 0.05, 0.10, 0.20)


def redraw(ratios: list[statistics.Floats], generator: np.random.Generator) -> list[statistics.Floats]:
    """One simulated run: as many processes and rounds as were recorded, drawn with replacement."""
    chosen = generator.integers(0, len(ratios), len(ratios))
    return [ratios[i][generator.integers(0, len(ratios[i]), len(ratios[i]))] for i in chosen]


def recorded_of(samples: pl.DataFrame, case: str, device: str) -> dict[str, list[statistics.Floats]]:
    """metric -> what a run recorded of it by process: those of the optimized side that are judged on the device."""
    found = {
        "speedup": ratios_by_process(samples, case),
        "optimized_ms": times_by_process(samples, case, "optimized"),
    }
    if GPU_BUSY in samples.columns and (busy := times_by_process(samples, case, "optimized", GPU_BUSY)):
        found["optimized_gpu_busy_ms"] = busy
    return {name: found[name] for name in expectations.judged(found, device)}


def verdict(expected: Estimate, found: Estimate, device: str, metric: str) -> str:
    """What compare.py would say of `found` if `expected` had been written as the expectation."""
    if expectations.is_wide(expected, device):
        return "absent"
    lower, upper = expectations.bounds(expected, device)
    return expectations.judge_interval(found, lower, upper, expectations.METRICS[metric][0])[0]


def rates(
    recorded: list[statistics.Floats], metric: str, device: str, runs: int = 200, seed: int = 0
) -> dict[float, Counter[str]]:
    """Per slowdown, how many of `runs` simulated runs got each verdict for one figure of recorded_of()."""
    generator = np.random.default_rng(seed)

    def drawn(number: int) -> Estimate:
        return statistics.estimate_positive(redraw(recorded, generator), "", seed=number)

    # A slowdown multiplies a run's estimate as it does its samples: one run serves for all of them.
    simulated = [(drawn(2 * run), drawn(2 * run + 1)) for run in range(runs)]
    found: dict[float, Counter[str]] = {}
    for slowdown in SLOWDOWNS:
        factor = 1 / (1 + slowdown) if expectations.METRICS[metric][0] else 1 + slowdown
        found[slowdown] = Counter(
            verdict(expected, statistics.scaled(again, factor, ""), device, metric) for expected, again in simulated
        )
    return found

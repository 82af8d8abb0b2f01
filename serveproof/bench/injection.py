"""A slowdown put in on purpose (`measure.injected_slowdown_percent`), to show that the expectations notice one.

The record says that it was injected; expectations are never rewritten from such a run.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from serveproof.bench.timing import Stopwatch
from serveproof.pairs import Run

CALLS = 7
TRIAL_CYCLES = 1_000_000


def slowed(run: Run, percent: float, watch: Stopwatch) -> Run:
    """`run`, each call made longer by `percent` of its own median time: a spin on the GPU, a busy host on a CPU.

    On a GPU by any clock: a host that is busy while the GPU still works would make nothing longer.
    """
    if not percent:
        return run
    calls = getattr(run, "calls", 1)
    extra_ms = percent / 100 * calls * _median_ms(run, watch)
    cycles = int(extra_ms * _cycles_per_ms(watch)) if watch.device == "cuda" else 0

    def slow() -> Any:
        output = run()
        if cycles:
            torch.cuda._sleep(cycles)
            return output
        until = time.perf_counter() + extra_ms / 1e3
        while time.perf_counter() < until:
            pass
        return output

    vars(slow).update(vars(run))  # backend, plan, calls, observed
    return slow


def _median_ms(run: Run, watch: Stopwatch) -> float:
    return statistics.median(watch.time_ms(run, 1)[0] for _ in range(CALLS))


def _cycles_per_ms(watch: Stopwatch) -> float:
    """Of torch.cuda._sleep, from the difference of two spins: what a launch takes falls out."""
    short_ms, long_ms = (
        _median_ms(lambda n=count: torch.cuda._sleep(n * TRIAL_CYCLES), watch)  # type: ignore[misc]
        for count in (1, 2)
    )
    return TRIAL_CYCLES / (long_ms - short_ms)

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
    """`run`, each call made longer by `percent` of its own median time: a spin on the GPU, a busy host on a CPU."""
    if not percent:
        return run
    calls = getattr(run, "calls", 1)
    extra_ms = percent / 100 * calls * statistics.median(watch.time_ms(run, 1)[0] for _ in range(CALLS))
    if watch.on_device:
        spin_ms = statistics.median(watch.time_ms(lambda: torch.cuda._sleep(TRIAL_CYCLES), 1)[0] for _ in range(CALLS))
        cycles = int(TRIAL_CYCLES * extra_ms / spin_ms)

    def slow() -> Any:
        output = run()
        if watch.on_device:
            torch.cuda._sleep(cycles)
            return output
        until = time.perf_counter() + extra_ms / 1e3
        while time.perf_counter() < until:
            pass
        return output

    vars(slow).update(vars(run))  # backend, plan, calls, observed
    return slow

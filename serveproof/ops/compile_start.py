"""How long a compiled closure takes to its first result: cold (no compile cache) and warm (its cache, a new Dynamo)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.utils
from torch._dynamo.utils import counters

from serveproof.ops.blocks import make_stack

Make = Callable[[], Callable[[], Any]]
EAGER_CALLS = 11


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def first_result_s(make: Make) -> float:
    """Seconds from building the closure to the end of its first call, by the host's clock."""
    synchronise()
    started = time.perf_counter()
    make()()
    synchronise()
    return time.perf_counter() - started


def starts_s(make: Make) -> tuple[float, float, int]:
    """(cold start, warm start, graphs that the cold start compiled).

    Cold: an empty cache folder for Inductor, its graph cache and Triton, none of this process's compiled code. Warm:
    the folder that the cold start filled, the process's own code forgotten again. The compiler is brought up before,
    on a function of another kind: its imports and workers are no part of either.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.compile(lambda x: x.sin().cumsum(0))(torch.ones(64, device=device))
    synchronise()
    with torch._inductor.utils.fresh_cache():
        torch._dynamo.reset()
        counters.clear()
        cold_s = first_result_s(make)
        graphs = counters["stats"]["unique_graphs"]
        torch._dynamo.reset()
        torch._inductor.utils.clear_caches()
        warm_s = first_result_s(make)
    torch._dynamo.reset()
    return cold_s, warm_s, graphs


def eager_ms(inputs: dict[str, Any]) -> float:
    """Median host time of a call of the uncompiled stack, its end awaited."""
    stack, times = make_stack(inputs), []
    for _ in range(EAGER_CALLS):
        synchronise()
        started = time.perf_counter()
        with torch.no_grad():
            stack(inputs["x_BSE"])
        synchronise()
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times)[EAGER_CALLS // 2]


def figures(inputs: dict[str, Any], make: Make) -> dict[str, tuple[float, str, str]]:
    """The metrics of one side."""
    cold_s, warm_s, graphs = starts_s(make)
    return {
        "cold_start_s": (
            cold_s,
            "s",
            "empty compile cache: build, compile and first call; the compiler already loaded",
        ),
        "warm_start_s": (
            warm_s,
            "s",
            "the same with the cache that the cold start filled, as a restarted server has it",
        ),
        "compiled_graphs": (graphs, "graphs", "that Dynamo compiled in the cold start"),
        "eager_ms": (eager_ms(inputs), "ms", "the same stack uncompiled, host's clock, median of 11"),
    }

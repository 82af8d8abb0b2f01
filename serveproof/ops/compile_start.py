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
CALLS = 11


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


def called_ms(call: Callable[[], Any]) -> float:
    """Median host time of a call, its end awaited."""
    times = []
    for _ in range(CALLS):
        synchronise()
        started = time.perf_counter()
        with torch.no_grad():
            call()
        synchronise()
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times)[CALLS // 2]


def figures(inputs: dict[str, Any], make: Make, compiled: Make) -> dict[str, tuple[float, str, str]]:
    """The metrics of one side: `make` builds what is served, `compiled` the same without a CUDA graph around it."""
    cold_s, warm_s, graphs = starts_s(make)
    stack, call = make_stack(inputs), compiled()
    call()
    how = f"host's clock, median of {CALLS}"
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
        "called_ms": (called_ms(call), "ms", f"compiled and called, not replayed from a CUDA graph: {how}"),
        "eager_ms": (called_ms(lambda: stack(inputs["x_BSE"])), "ms", f"the same stack uncompiled: {how}"),
    }

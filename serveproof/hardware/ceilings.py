"""The machine's measured ceilings: what every roofline fraction divides by.

A ceiling is the best of many tries, not their median: it must be what the machine can do when nothing disturbs it,
for a kernel that beats it is called an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from serveproof.ops.linear import linear
from serveproof.results import Ceilings

MIB = 2**20
# On a CPU the last-level cache serves much of a small working set, and a pair's inputs may live there: the read
# ceiling is the best over these sizes, the smallest of which still exceeds a core's private caches.
CPU_SIZES_BYTES = (8 * MIB, 32 * MIB, 128 * MIB)
GPU_COPY_BYTES = 4096 * MIB
REST_S = 0.5
RELIEF_BYTES = 1024 * MIB
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
}


def seconds_of(call: Callable[[], object], device: str) -> float:
    """One call's time in seconds: events on CUDA, the host clock on a CPU."""
    if device == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def best_seconds(
    call: Callable[[], object],
    device: str,
    budget_s: float,
    between: Callable[[], object] = lambda: None,
    tries: int = 5,
) -> float:
    """The fastest of at least `tries` calls within about budget_s seconds, after one warm-up call, with `between`,
    untimed, before each.

    A GPU rests first: after seconds of dense products its power limit holds the clock down, which a pair's calls, with
    inputs refilled between them, do not meet.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        time.sleep(REST_S)
    seconds_of(call, device)
    best, ended, done = float("inf"), time.perf_counter() + budget_s, 0
    while done < tries or time.perf_counter() < ended:
        between()
        best = min(best, seconds_of(call, device))
        done += 1
    return best


def _bandwidths(device: str, budget_s: float) -> tuple[float, float]:
    """Best copy (bytes read plus written) and read (row sums) bandwidth in bytes/s."""
    sizes = CPU_SIZES_BYTES if device == "cpu" else (GPU_COPY_BYTES,)
    copy = read = 0.0
    for size in sizes:
        source = torch.randn(size // (4 * 4096), 4096, device=device)
        target = torch.empty_like(source)
        sums = torch.empty(source.shape[0], device=device)
        copy = max(copy, 2 * size / best_seconds(lambda t=target, s=source: t.copy_(s), device, budget_s))  # type: ignore[misc]
        read = max(
            read,
            size / best_seconds(lambda s=source, o=sums: torch.sum(s, dim=1, out=o), device, budget_s),  # type: ignore[misc]
        )
    return copy, read


def _matmuls(dtype: torch.dtype, device: str, size: int) -> list[Callable[[], torch.Tensor]]:
    """The products whose best is the ceiling: float8's by one scale a tensor and by one a row, which run unlike."""
    a = torch.randn(size, size, device=device)
    b = torch.randn(size, size, device=device)
    if dtype != torch.float8_e4m3fn:
        a, b = a.to(dtype), b.to(dtype)
        # as the engine multiplies: a CPU without units for bfloat16 is faster by way of float32
        return [(lambda: linear(a, b)) if device == "cpu" else (lambda: a @ b)]
    a8, b8 = a.to(dtype), b.to(dtype).t()
    scales = (
        [torch.ones((), device=device)] * 2,
        [torch.ones(size, 1, device=device), torch.ones(1, size, device=device)],
    )

    def product(scale_a: torch.Tensor, scale_b: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(a8, b8, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True)

    return [partial(product, *pair) for pair in scales]


def _relief(device: str) -> Callable[[], object]:
    """What runs between a GPU's dense products: a copy, which takes less power and keeps the clock up.

    On an H200 float8 products of 8192 had 1309 TFLOP/s in the median back to back, 1361 with such a copy between and
    1473 with inputs drawn anew; the fastest tenth 1400, 1519 and 1535. A pause is no help: the clock falls in it.
    """
    if device == "cpu":
        return lambda: None
    source = torch.empty(RELIEF_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(device: str, budget_s: float = 0.4) -> Ceilings:
    """Measure copy and read bandwidth (bytes/s) and the dense matrix rate per dtype (FLOP/s) of `cpu` or `cuda`.

    float32 means full float32 (TF32 off). A dtype whose product the device can't do is left out.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    copy, read = _bandwidths(device, budget_s)
    sizes = (1024, 2048) if device == "cpu" else (4096, 8192)
    rates: dict[str, float] = {}
    relief = _relief(device)
    for dtype in DTYPES[device]:
        if device == "cuda" and dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
            continue
        name = str(dtype).removeprefix("torch.")
        for size in sizes:
            for product in _matmuls(dtype, device, size):
                seconds = best_seconds(product, device, budget_s, relief)
                rates[name] = max(rates.get(name, 0.0), 2 * size**3 / seconds)
    if device == "cpu":
        how = (
            f"host clock, best of repeated calls, {torch.get_num_threads()} threads; bandwidth over "
            f"{', '.join(str(size // MIB) for size in CPU_SIZES_BYTES)} MiB (caches count), matrices of {sizes}"
        )
    else:
        how = f"CUDA events, best of repeated calls; bandwidth over {GPU_COPY_BYTES // MIB} MiB, matrices of {sizes}"
    return Ceilings(
        copy_bandwidth_bytes_per_s=copy,
        # Where torch's sum is compute-bound the copy's rate is the truer ceiling: reading can't be slower.
        read_bandwidth_bytes_per_s=max(read, copy),
        matmul_flops_per_s=rates,
        how=how,
    )

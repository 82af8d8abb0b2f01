"""Collectives between ranks: whether each gives exactly what it must, and what an all-reduce costs by size.

Values are small whole numbers, so that sums are exact in every dtype and order: the answer is right or it is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from serveproof.bench.statistics import estimate_positive, scaled
from serveproof.distributed.direct import peers_reach_each_other
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import CollectivePoint, RankedCase
from serveproof.engine.parallel import gather_rows, scatter_sums
from serveproof.results import Estimate, Status

Call = Callable[[], object]
# odd and prime sizes too: a collective that pads or splits badly shows there
ELEMENTS = (1, 2, 1021, 4096, 65537)
# sums of small whole numbers are exact in bfloat16 up to this
EXACT, PERIOD = 256, 61
DTYPES = (torch.float32, torch.bfloat16)
SAMPLES, CALLS = 12, 10


def pattern(ranks: Ranks, rank: int, elements: int, dtype: torch.dtype) -> Tensor:
    """Whole numbers from 0 to 60 or less, another order on each rank; all ranks' sum is exact in bfloat16."""
    period = max(2, min(PERIOD, EXACT // ranks.world))
    return ((torch.arange(elements, device=ranks.device) * (rank + 3) + 7 * rank) % period).to(dtype)


def _all_reduce(ranks: Ranks, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = pattern(ranks, ranks.rank, n, dtype)
    dist.all_reduce(x)
    return x, sum_of(ranks, n, dtype)


def sum_of(ranks: Ranks, n: int, dtype: torch.dtype) -> Tensor:
    """The sum of every rank's pattern."""
    total = sum(pattern(ranks, rank, n, torch.float64) for rank in range(ranks.world))
    assert isinstance(total, Tensor)  # noqa: S101 (told to mypy)
    return total.to(dtype)


def _all_gather(ranks: Ranks, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    out = torch.empty(ranks.world * n, dtype=dtype, device=ranks.device)
    gather_rows(out, pattern(ranks, ranks.rank, n, dtype))
    return out, torch.cat([pattern(ranks, rank, n, dtype) for rank in range(ranks.world)])


def _reduce_scatter(ranks: Ranks, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    out = torch.empty(n, dtype=dtype, device=ranks.device)
    scatter_sums(out, pattern(ranks, ranks.rank, ranks.world * n, dtype))
    return out, sum_of(ranks, ranks.world * n, dtype)[ranks.rank * n : (ranks.rank + 1) * n]


def _broadcast(ranks: Ranks, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    last = ranks.world - 1
    x = pattern(ranks, ranks.rank, n, dtype)
    dist.broadcast(x, last)
    return x, pattern(ranks, last, n, dtype)


def _all_to_all(ranks: Ranks, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Uneven: rank r sends n + p elements to rank p."""
    sends = [n + peer for peer in range(ranks.world)]
    receives = [n + ranks.rank] * ranks.world
    out = torch.empty(sum(receives), dtype=dtype, device=ranks.device)
    dist.all_to_all_single(out, pattern(ranks, ranks.rank, sum(sends), dtype), receives, sends)
    start = sum(sends[: ranks.rank])
    parts = [pattern(ranks, r, sum(sends), dtype)[start : start + n + ranks.rank] for r in range(ranks.world)]
    return out, torch.cat(parts)


CHECKS = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_to_all": _all_to_all,
}


def right(ranks: Ranks) -> list[RankedCase]:
    """Every collective at every size and dtype, exact on every rank."""
    cases = []
    for name, call in CHECKS.items():
        axes = {"elements": list(ELEMENTS), "dtypes": [str(one).removeprefix("torch.") for one in DTYPES]}
        wrong = []
        for dtype in DTYPES:
            for elements in ELEMENTS:
                found, expected = call(ranks, elements, dtype)
                if found.shape != expected.shape or not torch.equal(found, expected):
                    wrong.append(f"{elements} x {dtype}")
        told = [f"rank {rank}: {', '.join(one)}" for rank, one in enumerate(ranks.gathered(wrong)) if one]
        reason = "; ".join(told) or f"exact on {ranks.world} ranks"
        cases.append(RankedCase(name, axes, "failed" if told else "passed", reason))
    return cases


def timed(ranks: Ranks, call: Call, samples: int = SAMPLES, calls: int = CALLS) -> Estimate:
    """ms a call: the slowest rank's time of each sample of `calls` in a row, after a warm-up. A collective itself."""
    for _ in range(2):
        call()
    ranks.synchronize()
    taken = []
    for _ in range(samples):
        dist.barrier()
        if ranks.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / calls)
        else:
            started = time.perf_counter()
            for _ in range(calls):
                call()
            taken.append(1e3 * (time.perf_counter() - started) / calls)
    slowest = np.array(ranks.gathered(taken)).max(axis=0)
    return estimate_positive([np.maximum(slowest, 1e-6)], "ms")


def all_reduce_by_size(ranks: Ranks, sizes: list[int]) -> tuple[list[CollectivePoint], list[RankedCase]]:
    """Time and bus bandwidth of every way to all-reduce bfloat16 here; each way is checked exactly before."""
    points, cases = [], []
    missing = peers_reach_each_other(ranks)
    ways = {ranks.backend: None} | ({} if missing else peer_ways(ranks))
    for name, make in ways.items():
        wrong: list[str] = []
        refused: list[str] = []
        for size in sizes:
            elements = size // 2
            x = pattern(ranks, ranks.rank, elements, torch.bfloat16)
            call: Call = partial(dist.all_reduce, x)
            if make is not None:
                try:
                    x, call = make(elements)
                except NotImplementedError as error:
                    refused.append(f"{size} B: {error}")
                    continue
                x.copy_(pattern(ranks, ranks.rank, elements, torch.bfloat16))
                ranks.synchronize()
                dist.barrier()
            call()
            ranks.synchronize()
            if not torch.equal(x, sum_of(ranks, elements, torch.bfloat16)):
                wrong.append(f"{size} B")
            # sums would grow beyond bfloat16 with every call
            x.zero_()
            ranks.synchronize()
            time_ms = timed(ranks, call)
            moved = 2 * (ranks.world - 1) / ranks.world * size
            points.append(
                CollectivePoint("all_reduce", name, size, scaled(time_ms, 1e3, "us"), 1e3 * moved / time_ms.value)
            )
        told = [f"rank {rank}: {', '.join(one)}" for rank, one in enumerate(ranks.gathered(wrong)) if one]
        done = f"exact at {len(sizes) - len(refused)} sizes" + (f"; not taken: {'; '.join(refused)}" if refused else "")
        status: Status = "failed" if told else "passed"
        cases.append(RankedCase(f"all_reduce_by_{name}", {"bytes": sizes}, status, "; ".join(told) or done))
    if missing:
        cases.append(RankedCase("all_reduce_by_symmetric_memory", {"bytes": sizes}, "skipped", missing))
    return points, cases


def _others(ranks: Ranks, elements: int) -> dict[str, Call]:
    """The collectives but all-reduce, over a tensor of `elements` bfloat16, a share a rank where there are shares."""
    whole = torch.zeros(elements, dtype=torch.bfloat16, device=ranks.device)
    other, share = torch.zeros_like(whole), torch.zeros_like(whole[: elements // ranks.world])
    return {
        "all_gather": partial(gather_rows, whole, share),
        "reduce_scatter": partial(scatter_sums, share, whole),
        "all_to_all": partial(dist.all_to_all_single, other, whole),
        "broadcast": partial(dist.broadcast, whole, 0),
    }


def others_by_size(ranks: Ranks, sizes: list[int]) -> list[CollectivePoint]:
    """Time and bus bandwidth of every other collective; `right` has checked them. A size is rounded down to shares."""
    points = []
    for size in sizes if ranks.world > 1 else []:
        elements = max(size // 2 // ranks.world, 1) * ranks.world
        for name, call in _others(ranks, elements).items():
            time_ms = timed(ranks, call)
            # what a rank must move at least: nccl-tests, doc/PERFORMANCE.md
            moved = 2 * elements * (1.0 if name == "broadcast" else (ranks.world - 1) / ranks.world)
            bus = 1e3 * moved / time_ms.value
            points.append(CollectivePoint(name, ranks.backend, 2 * elements, scaled(time_ms, 1e3, "us"), bus))
    return points


def peer_ways(ranks: Ranks) -> dict[str, Callable[[int], tuple[Tensor, Call]] | None]:
    """Our kernels over symmetric memory: name -> make(elements) -> (the tensor, a call in place)."""
    from serveproof.ops import peer_all_reduce, peer_memory

    def buffered(kernel: Callable[..., Call]) -> Callable[[int], tuple[Tensor, Call]]:
        def make(elements: int) -> tuple[Tensor, Call]:
            x = torch.empty(elements, dtype=torch.bfloat16, device=ranks.device)
            return x, kernel(ranks.rank, ranks.world, x, peer_memory.allocate)

        return make

    def two_shot(elements: int) -> tuple[Tensor, Call]:
        made: tuple[Tensor, Call] = peer_all_reduce.two_shot(
            ranks.rank, ranks.world, elements, ranks.device, peer_memory.allocate
        )
        return made

    return {
        "symmetric_memory_push": buffered(peer_all_reduce.push),
        "symmetric_memory_pull": buffered(peer_all_reduce.pull),
        "symmetric_memory_two_shot": two_shot,
    }

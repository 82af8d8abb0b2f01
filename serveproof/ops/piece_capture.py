"""Capturing pieces as CUDA graphs, one graph a piece and bucket, all in one memory pool."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass
class Captured:
    """The graphs by bucket, their pool, and what capturing them took.

    pieces: kept, for the graphs read tensors that only the pieces hold; freed, their memory would be another's.
    """

    pool: Any
    graphs: dict[int, list[torch.cuda.CUDAGraph]] = field(default_factory=dict)
    pieces: dict[int, list[Call]] = field(default_factory=dict)
    seconds: float = 0.0
    device_bytes: int = 0

    @property
    def count(self) -> int:
        return sum(len(graphs) for graphs in self.graphs.values())

    @property
    def pool_bytes(self) -> int:
        """Bytes that the caching allocator holds for the shared pool."""
        segments = torch.cuda.memory_snapshot()
        return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == tuple(self.pool))


def capture(pieces_of: Callable[[int], list[Call]], buckets: Sequence[int]) -> Captured:
    """Graph every piece of every bucket, the largest bucket first, so that smaller ones fit the memory it has left.

    Each bucket's pieces run once on the capturing stream before: kernels compile and libraries load there. `seconds`
    counts the captures alone, `device_bytes` what the driver and the allocator took meanwhile, by the driver's count:
    the allocator gives back what it no longer uses before each, as torch.cuda.graph makes it do, so it isn't counted.
    """
    captured = Captured(pool=torch.cuda.graph_pool_handle())
    stream = torch.cuda.Stream()
    gc.collect()
    for bucket in sorted(buckets, reverse=True):
        pieces = pieces_of(bucket)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for piece in pieces:
                piece()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free_bytes, started = torch.cuda.mem_get_info()[0], time.perf_counter()
        graphs = []
        for piece in pieces:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=captured.pool, stream=stream):
                piece()
            graphs.append(graph)
        torch.cuda.synchronize()
        captured.graphs[bucket], captured.pieces[bucket] = graphs, pieces
        captured.seconds += time.perf_counter() - started
        captured.device_bytes += free_bytes - torch.cuda.mem_get_info()[0]
    return captured


def replayed(call: Call) -> Call:
    """`call` as one CUDA graph, its output the graph's own tensor; without CUDA `call` itself."""
    if not torch.cuda.is_available():
        return call
    outputs: list[Any] = []

    def piece() -> None:
        outputs[:] = [call()]

    captured = capture(lambda _: [piece], [1])

    def run() -> Any:
        captured.graphs[1][0].replay()
        return outputs[0]

    return run

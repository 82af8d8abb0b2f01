"""The allocator's view of a call, from a trace's memory events and from what torch's CUDA allocator tells of itself."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

import torch

from serveproof.bench.profiling_slices import Window
from serveproof.bench.profiling_trace import Event
from serveproof.profile_records import MOST_POINTS, Allocations
from serveproof.results import Metric

MEMORY_EVENT = "[memory]"
DEVICE_TYPES = {"cpu": 0, "cuda": 1}
OUTSIDE = "outside any operation"
# Of torch.cuda.memory_stats: (its key, ours, unit, what it says)
STATE = (
    ("reserved_bytes.all.current", "reserved", "bytes", "held from the device"),
    ("allocated_bytes.all.current", "allocated", "bytes", "in tensors"),
    ("inactive_split_bytes.all.current", "split_and_free", "bytes", "free, in pieces of larger blocks"),
    ("num_device_alloc", "device_allocations", "", "cudaMalloc since the process started"),
    ("num_alloc_retries", "retries", "", "allocations that first had to give cached memory back"),
)


def allocations(events: list[Event], window: Window, calls: int, device: str) -> Allocations:
    """Allocations of a call, the highest use above the start, a timeline, and which operations allocate most."""
    mine = sorted(
        (
            event
            for event in events
            if event.name == MEMORY_EVENT
            and event.args.get("Device Type") == DEVICE_TYPES[device]
            and window.start <= event.ts <= window.end
        ),
        key=lambda event: event.ts,
    )
    starts = [one.start for one in window.host]
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    points: list[tuple[float, int]] = []
    above = 0
    for event in mine:
        size = int(event.args.get("Bytes", 0))
        above += size
        points.append(((event.ts - window.start) / 1e3, above))
        if size > 0:
            at = max(0, bisect_right(starts, event.ts) - 1)
            path = window.host[at].node.path() if window.host else iter(())
            name = next((node.name for node in path if node.kind == "operation"), OUTSIDE)
            counts[name][0] += 1 / calls
            counts[name][1] += size / calls
    top = sorted(((name, count, size) for name, (count, size) in counts.items()), key=lambda one: -one[2])
    return Allocations(
        allocations=sum(count for _, count, _ in top),
        allocated_bytes=sum(size for _, _, size in top),
        peak_bytes=max([0, *(size for _, size in points)]),
        timeline=thinned(points),
        top=top[:10],
        state=_state() if torch.cuda.is_available() and device == "cuda" else {},
    )


def thinned(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """At most MOST_POINTS of them: of each stretch the highest, so that no peak is lost."""
    size = -(-len(points) // MOST_POINTS) or 1
    return [max(points[at : at + size], key=lambda point: point[1]) for at in range(0, len(points), size)]


def _state() -> dict[str, Metric]:
    stats = torch.cuda.memory_stats()
    found = {ours: Metric(float(stats[key]), unit, note) for key, ours, unit, note in STATE if key in stats}
    segments = torch.cuda.memory_snapshot()
    found["segments"] = Metric(float(len(segments)), "", "blocks of device memory")
    return found

"""Whether an engine gives back what it takes: judged from what was counted after each of several equal rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serveproof.telemetry.scrape import Sample


@dataclass(frozen=True)
class Round:
    """After one round of requests, everything idle. live_bytes: of all tensors that are alive; allocated, reserved: by
    torch's CUDA allocator (0 on a CPU); blocks_out: cache blocks that nobody gave back; references: to blocks."""

    number: int
    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    largest_free_bytes: int
    resident_bytes: int
    blocks_out: int
    references: int

    @property
    def fragmentation(self) -> float:
        """Share of the reserved memory that is not allocated."""
        return 1 - self.allocated_bytes / self.reserved_bytes if self.reserved_bytes else 0.0


def growth_bytes(values: Sequence[int]) -> float:
    """Bytes a round by Theil and Sen's line (the median of all slopes); one jump, as of a cache that filled once, is
    none."""
    y = np.asarray(values, dtype=np.float64)
    slopes = [(y[j] - y[i]) / (j - i) for i in range(len(y)) for j in range(i + 1, len(y))]
    return float(np.median(slopes)) if slopes else 0.0


def faults(rounds: Sequence[Round], tolerated_bytes: float) -> list[str]:
    """What is wrong, in words; nothing when the engine is healthy. The first round warms up and is left out of growth.

    tolerated_bytes: growth a round that is let pass. Resident memory is shown and not judged: Python's allocator and
    libc keep what they were given.
    """
    found = []
    for one in rounds:
        if one.blocks_out:
            found.append(f"round {one.number}: {one.blocks_out} cache blocks were not given back")
        if one.references:
            found.append(f"round {one.number}: {one.references} references to cache blocks are left, with no request")
    settled = rounds[1:]
    for name, values in (
        ("live tensors", [one.live_bytes for one in settled]),
        ("allocated device memory", [one.allocated_bytes for one in settled]),
        ("reserved device memory", [one.reserved_bytes for one in settled]),
    ):
        grown = growth_bytes(values)
        if grown > tolerated_bytes:
            found.append(f"{name} grow by {grown:.0f} bytes a round over {len(settled)} rounds")
    return found


def server_faults(samples: Sequence[tuple[float, Sample]], settle_s: float, tolerated: float = 0.001) -> list[str]:
    """What is wrong with a server's cache by its /metrics, sampled over time (seconds, sample): use that stays when
    nothing has run or waited for settle_s. Nothing to say of a server that was never idle that long."""
    idle_since: float | None = None
    for at_s, one in samples:
        if one.running or one.waiting:
            idle_since = None
            continue
        idle_since = at_s if idle_since is None else idle_since
        if at_s - idle_since >= settle_s and one.cache_usage is not None and one.cache_usage > tolerated:
            return [
                f"{100 * one.cache_usage:.2f} % of the cache in use after {at_s - idle_since:.1f} s without a request"
            ]
    return []

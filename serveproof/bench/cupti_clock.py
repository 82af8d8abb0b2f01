"""Device time from CUPTI's activity records: from the first kernel's start to the last one's end, or while any runs.

CUPTI (package cupti-python) stamps every kernel, copy and fill on the GPU's own clock, so a span holds no event's and
no launch's overhead. Where the package is missing, or can't start beside another profiler, events are used instead.
"""

from __future__ import annotations

import importlib.util
from typing import Any

BUFFER_BYTES = 8 * 2**20


class CuptiClock:
    """Collects activity records from begin() to span_ms() or busy_ms(). One a process: CUPTI's callbacks are global."""

    def __init__(self) -> None:
        from cupti import cupti

        self.cupti = cupti
        self.spans: list[tuple[str, int, int]] = []
        self.kinds = (cupti.ActivityKind.CONCURRENT_KERNEL, cupti.ActivityKind.MEMCPY, cupti.ActivityKind.MEMSET)
        cupti.activity_register_callbacks(lambda: (BUFFER_BYTES, 0), self._completed)

    def __enter__(self) -> CuptiClock:
        """Record from here on: recording costs the host several times its usual enqueueing."""
        for kind in self.kinds:
            self.cupti.activity_enable(kind)
        return self

    def __exit__(self, *error: object) -> None:
        for kind in self.kinds:
            self.cupti.activity_disable(kind)

    def _completed(self, activities: list[Any]) -> None:
        for activity in activities:
            if activity.kind in self.kinds:
                name = activity.name if activity.kind == self.kinds[0] else ""
                self.spans.append((name, activity.start, activity.end))

    def begin(self) -> None:
        """Forget what ran before. The GPU must be idle."""
        self.cupti.activity_flush_all(1)
        self.spans.clear()

    def span_ms(self, marker: str) -> float:
        """ms from the first start to the last end of what ran after the first kernel whose name holds `marker`.

        The first: a closure that was slowed on purpose ends in the same kernel, which then counts.
        """
        self.cupti.activity_flush_all(1)
        ended = min((end for name, _, end in self.spans if marker in name), default=None)
        if ended is None:
            raise RuntimeError(f"CUPTI has no record of the kernel {marker!r} that precedes what is timed")
        after = [(start, end) for _, start, end in self.spans if start >= ended]
        if not after:
            raise RuntimeError("CUPTI has no record of a kernel in the timed call: it launches nothing")
        return (max(end for _, end in after) - min(start for start, _ in after)) / 1e6

    def busy_ms(self) -> float:
        """ms since begin() in which at least one kernel, copy or fill ran."""
        self.cupti.activity_flush_all(1)
        busy, seen = 0, 0
        for start, end in sorted((start, end) for _, start, end in self.spans):
            busy += max(0, end - max(start, seen))
            seen = max(seen, end)
        if not busy:
            raise RuntimeError("CUPTI has no record of a kernel in the call: it launches nothing")
        return busy / 1e6


_CLOCK: CuptiClock | None = None


def clock() -> CuptiClock | None:
    """This process's clock, or None where cupti-python is missing or CUPTI does not start."""
    global _CLOCK
    if _CLOCK is None and importlib.util.find_spec("cupti") is not None:
        try:
            _CLOCK = CuptiClock()
        except Exception:  # CUPTI raises its own class per error: another profiler holds it, or no permission
            return None
    return _CLOCK

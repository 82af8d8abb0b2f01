"""The queue's bound: how many choices may be under way, and when it is worth coming back."""

from __future__ import annotations

import math
import time
from collections import Counter, deque

from serveproof.server.errors import ApiError

LOOK_BACK_S, LONGEST_WAIT_S = 10.0, 60


class Gate:
    """most: choices that may run and wait together. closed: why nobody comes in any more; '' while it is open.

    fair: who fills the queue shuts out nobody else. A tenant that has less than an equal share of `most` comes in all
    the same, until there are twice as many: names are the clients' own, and may be many.
    """

    def __init__(self, most: int, fair: bool = False) -> None:
        self.most, self.fair, self.closed = most, fair, ""
        self.inside: Counter[str] = Counter()
        self.ended_s: deque[float] = deque()

    def enter(self, count: int, tenant: str) -> None:
        """Let so many choices in. ApiError 429 when they would be too many, saying when there may be room; 503 when it
        is closed."""
        if self.closed:
            raise ApiError(503, self.closed, headers={"Retry-After": "1"})
        if count > self.most:
            raise ApiError(
                400, f"{count} choices at once are more than this server takes ({self.most}); ask for fewer", "n"
            )
        inside = self.inside.total()
        if inside + count > self.most and not self._owed(inside, count, tenant):
            wait_s = self.wait_s(inside + count - self.most)
            said = f"the server has {inside} requests of at most {self.most}; try again in {wait_s} s"
            raise ApiError(429, said, code="overloaded", headers={"Retry-After": str(wait_s)})
        self.inside[tenant] += count

    def _owed(self, inside: int, count: int, tenant: str) -> bool:
        tenants = len(self.inside.keys() | {tenant})
        return self.fair and inside + count <= 2 * self.most and self.inside[tenant] + count <= self.most // tenants

    def leave(self, count: int, tenant: str) -> None:
        """So many choices have ended."""
        self.inside[tenant] -= count
        if not self.inside[tenant]:
            del self.inside[tenant]
        now = time.monotonic()
        self.ended_s.extend([now] * count)
        self._forget(now)

    def wait_s(self, count: int) -> int:
        """Whole seconds until so many will have ended, at the rate of the last ten."""
        self._forget(time.monotonic())
        rate = len(self.ended_s) / LOOK_BACK_S
        return min(LONGEST_WAIT_S, max(1, math.ceil(count / rate))) if rate else 1

    def _forget(self, now: float) -> None:
        while self.ended_s and self.ended_s[0] < now - LOOK_BACK_S:
            self.ended_s.popleft()

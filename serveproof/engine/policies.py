"""In which order waiting requests are admitted; running ones are preempted in the reverse order.

Each policy is a queue of waiting sequences. What a call costs grows with the logarithm of the queue, or not at all.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from serveproof.engine.sequence import Sequence, Status
from serveproof.errors import UserError

Rank = Callable[[Sequence], tuple[float, ...]]


class Policy(Protocol):
    """A queue of waiting sequences. Sequences that were finished while they waited are never given out.

    counts_service: whether `served` does anything.
    """

    counts_service: bool

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence, new or preempted, and set its rank."""

    def peek(self) -> Sequence | None:
        """The next to admit."""

    def pop(self) -> Sequence:
        """Take what `peek` showed."""

    def served(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """Account for work that was done for a tenant."""


class Ranked:
    """The smallest rank first; a rank never changes."""

    counts_service = False

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.heap: list[tuple[tuple[float, ...], Sequence]] = []

    def push(self, sequence: Sequence) -> None:
        sequence.rank = (*self.rank(sequence), sequence.order)
        heapq.heappush(self.heap, (sequence.rank, sequence))

    def peek(self) -> Sequence | None:
        while self.heap and self.heap[0][1].status is Status.FINISHED:
            heapq.heappop(self.heap)
        return self.heap[0][1] if self.heap else None

    def pop(self) -> Sequence:
        return heapq.heappop(self.heap)[1]

    def served(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """Ranks don't depend on service."""


class Fair:
    """Virtual token counters: the tenant that was served least comes first (VTC, Sheng et al., arXiv 2401.00588).

    A tenant's counter grows by PROMPT_WEIGHT a prompt token and OUTPUT_WEIGHT an output token. One that comes back from
    idleness starts at the least counter of those that are there, so idleness saves nothing up.
    """

    counts_service = True
    PROMPT_WEIGHT = 1.0
    OUTPUT_WEIGHT = 2.0

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.queues: dict[str, deque[Sequence]] = {}

    def push(self, sequence: Sequence) -> None:
        queue = self.queues.get(sequence.tenant)
        if queue is None:
            queue = self.queues[sequence.tenant] = deque()
            others = [self.counters[tenant] for tenant in self.queues if tenant != sequence.tenant]
            floor = min(others, default=0.0)
            self.counters[sequence.tenant] = max(self.counters.get(sequence.tenant, 0.0), floor)
        sequence.rank = (sequence.order,)
        # a preempted sequence was there before all that wait
        (queue.appendleft if sequence.status is Status.SWAPPED or sequence.output_length else queue.append)(sequence)

    def peek(self) -> Sequence | None:
        for tenant in sorted(self.queues, key=lambda one: self.counters[one]):
            queue = self.queues[tenant]
            while queue and queue[0].status is Status.FINISHED:
                queue.popleft()
            if queue:
                return queue[0]
            del self.queues[tenant]
        return None

    def pop(self) -> Sequence:
        sequence = self.peek()
        if sequence is None:
            raise IndexError("nothing waits")
        return self.queues[sequence.tenant].popleft()

    def served(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        work = self.PROMPT_WEIGHT * prompt_tokens + self.OUTPUT_WEIGHT * output_tokens
        self.counters[tenant] = self.counters.get(tenant, 0.0) + work


def deadline(sequence: Sequence) -> tuple[float, ...]:
    """By when its first token is due; without a target it can wait for ever."""
    target = sequence.ttft_target_s
    return (math.inf if target is None else sequence.arrival_s + target,)


POLICIES: dict[str, Callable[[], Policy]] = {
    "first_come": lambda: Ranked(lambda _: ()),
    "priority": lambda: Ranked(lambda sequence: (sequence.priority,)),
    "deadline": lambda: Ranked(deadline),
    "fair": Fair,
}


def make_policy(name: str) -> Policy:
    """The policy of that name, or UserError listing what there is. Smaller `priority` comes sooner, as in vLLM."""
    if name not in POLICIES:
        raise UserError(f"policy {name!r} is unknown; there are {', '.join(POLICIES)}")
    return POLICIES[name]()

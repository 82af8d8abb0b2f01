"""Taking turns: interleaved timing of two closures in one process, A B B A then B A A B, inputs refilled between calls.

Interleaving lets drift (clocks, neighbours, temperature) fall on both sides alike; alternating the order cancels a
linear drift within a round. Refilling, the L2 flush and synchronisation stay outside the timed region.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from serveproof.bench.inputs import Refill
from serveproof.hardware.clocks import slowdown_reasons
from serveproof.pairs import Run
from serveproof.results import SIDES

MIN_SAMPLE_MS_CPU = 2.0
# How long the GPU is kept busy while the host enqueues what is timed: a multiple of the enqueueing time seen so far.
SPIN_FACTOR, SPIN_MAX_S = 3.0, 0.02


@dataclass
class Sample:
    """One timed sample: the mean time of `repeats` calls of one side, in ms."""

    round: int
    side: str
    order: int
    time_ms: float


@dataclass
class Samples:
    """All samples of one case in one process, and how they were taken."""

    samples: list[Sample] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)
    discard_reasons: list[str] = field(default_factory=list)
    l2_flush_bytes: int = 0


class Stopwatch:
    """Times calls on one device: the host clock on a CPU, CUDA events behind an L2 flush on a GPU.

    On a GPU it's the device's time: before the start event a spin keeps the GPU busy for longer than the host has
    needed to enqueue the calls, so that launch latency, which a served step hides in CUDA graphs, isn't in it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.flush: torch.Tensor | None = None
        self.enqueue_s = 1e-4
        if device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            self.flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device=device)
            self.clock_hz = 1e3 * getattr(properties, "clock_rate", 2e6)  # kHz; torch 2.11 may not tell

    @property
    def l2_flush_bytes(self) -> int:
        return 0 if self.flush is None else self.flush.numel()

    def time_ms(self, run: Run, repeats: int) -> tuple[float, Any]:
        """(mean ms of `repeats` calls, last output)."""
        output = None
        if self.flush is None:
            started = time.perf_counter_ns()
            for _ in range(repeats):
                output = run()
            return (time.perf_counter_ns() - started) / 1e6 / repeats, output
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self.flush.zero_()
        torch.cuda._sleep(int(min(SPIN_FACTOR * self.enqueue_s, SPIN_MAX_S) * self.clock_hz))
        enqueued = time.perf_counter()
        start.record()
        for _ in range(repeats):
            output = run()
        end.record()
        self.enqueue_s = max(self.enqueue_s, time.perf_counter() - enqueued)
        end.synchronize()
        return start.elapsed_time(end) / repeats, output


def take_turns(
    runs: dict[str, Run],
    refill: Refill,
    device: str,
    rounds: int,
    warmup_rounds: int,
    check_last: Callable[[str, Any], None],
    progress: Callable[[], None] = lambda: None,
) -> Samples:
    """Time both sides for `rounds` rounds after `warmup_rounds`.

    A round during which the GPU says it runs slowed down is thrown away and counted. A last round more is timed like
    the others and not recorded: there the inputs are values never seen before, check_last(side, output) gets the
    output of the very calls that were timed while their inputs are still in place, and checking disturbs no sample.
    """
    watch = Stopwatch(device)
    taken = Samples(l2_flush_bytes=watch.l2_flush_bytes)
    for side in SIDES:
        fastest = math.inf
        for _ in range(max(1, warmup_rounds)):
            refill.next()
            fastest = min(fastest, watch.time_ms(runs[side], 1)[0])
        taken.repeats[side] = 1 if device == "cuda" else max(1, math.ceil(MIN_SAMPLE_MS_CPU / fastest))
    for number in range(rounds + 1):
        first, second = SIDES if number % 2 == 0 else SIDES[::-1]
        slowed = set(slowdown_reasons()) if device == "cuda" else set()
        this_round = []
        for order, side in enumerate((first, second, second, first)):
            if number < rounds:
                refill.next()
            else:
                refill.fresh()
            time_ms, output = watch.time_ms(runs[side], taken.repeats[side])
            this_round.append(Sample(number, side, order, time_ms))
            if number == rounds and order >= 2:
                check_last(side, output)
            del output
        if device == "cuda":
            slowed |= set(slowdown_reasons())
        if number == rounds:
            break
        if slowed:
            taken.discard_reasons.append(f"round {number}: {', '.join(sorted(slowed))}")
        else:
            taken.samples.extend(this_round)
        progress()
    return taken

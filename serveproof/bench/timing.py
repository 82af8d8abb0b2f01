"""Taking turns: interleaved timing of two closures in one process, A B B A then B A A B, inputs refilled between calls.

Interleaving lets drift (clocks, neighbours, temperature) fall on both sides alike; alternating the order cancels a
linear drift within a round. Refilling, the L2 flush and synchronisation stay outside the timed region.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from serveproof.bench import cupti_clock
from serveproof.bench.cupti_clock import CuptiClock
from serveproof.bench.host_sync import HostSync, no_host_sync
from serveproof.bench.inputs import Refill
from serveproof.hardware.clocks import slowdown_reasons
from serveproof.nvtx_ranges import TIMED, span
from serveproof.pairs import Run
from serveproof.results import SIDES

MIN_SAMPLE_MS_CPU = 2.0
# How long the GPU is kept busy while the host enqueues what is timed: a multiple of the enqueueing time seen so far.
SPIN_FACTOR, SPIN_MAX_S = 3.0, 0.02
BUSY_ROUNDS = 2
SPIN_KERNEL = "spin_kernel"  # torch.cuda._sleep's kernel: in CUPTI's records the timed call comes after it


@dataclass
class Sample:
    """One timed sample: the mean time of `repeats` calls of one side, in ms."""

    round: int
    side: str
    order: int
    time_ms: float


@dataclass
class Samples:
    """All samples of one case in one process, and how they were taken.

    enqueue_ms: a side's median host time to hand one call to the GPU. observed: what the closures told of themselves,
    (side, name) -> one (value, unit, note) a sample. busy: like samples, how long the GPU worked in calls of their own.
    """

    samples: list[Sample] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)
    discard_reasons: list[str] = field(default_factory=list)
    l2_flush_bytes: int = 0
    method: str = "host_clock"
    enqueue_ms: dict[str, float] = field(default_factory=dict)
    observed: dict[tuple[str, str], list[tuple[float, str, str]]] = field(default_factory=dict)
    busy: list[Sample] = field(default_factory=list)


class Stopwatch:
    """Times calls on one device.

    On a CPU: the host's clock. On a GPU, clock `device`: the device's own time. A spin before the first timed call
    keeps the GPU busy for longer than the host has needed to enqueue the calls, so that launch latency, which a served
    step hides in CUDA graphs, isn't in it; the time is between events, or CUPTI's span once recording() has begun. On a
    GPU, clock `host`: from the call to its synchronised end, launches included. A closure's `calls` (how many calls of
    the thing one run() makes) divides its time.
    """

    def __init__(self, device: str, clock: str = "device", ranks: int = 1) -> None:
        self.device, self.ranks = device, ranks
        self.on_device = device == "cuda" and clock == "device"
        self.flush: torch.Tensor | None = None
        self.enqueue_s = 1e-4
        self.last_enqueue_ms: float | None = None
        self.cupti: CuptiClock | None = None
        self.method = "cuda_events" if self.on_device else "host_clock"
        if device == "cuda":
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            self.flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device=device)
            self.clock_hz = 1e3 * getattr(properties, "clock_rate", 2e6)  # kHz; torch 2.11 may not tell
            self.meeting = torch.zeros(1, device=device)

    @contextmanager
    def recording(self, runs: Iterable[Run]) -> Iterator[None]:
        """Inside, device times are CUPTI's where cupti-python is installed and every one of `runs` allows it.

        A closure that waits for the GPU keeps to events: CUPTI makes launches several times as long, and behind each
        wait that would be in its time. So do ranks, which wait for each other inside what is timed.
        """
        wanted = self.on_device and self.ranks == 1 and not any(map(waits_for_gpu, runs))
        found = cupti_clock.clock() if wanted else None
        if found is None:
            yield
            return
        with found:
            self.cupti, self.method = found, "cupti"
            yield
        self.cupti, self.method = None, "cuda_events"

    @property
    def l2_flush_bytes(self) -> int:
        return 0 if self.flush is None else self.flush.numel()

    def time_ms(self, run: Run, repeats: int) -> tuple[float, Any]:
        """(mean ms of `repeats` runs, divided by the closure's `calls`; last output)."""
        with span(TIMED):  # around the clock's readings: nothing of it is between them
            took_ms, output = self._device_ms(run, repeats) if self.on_device else self._host_ms(run, repeats)
        return took_ms / repeats / getattr(run, "calls", 1), output

    def busy_ms(self, run: Run, found: CuptiClock) -> float:
        """ms of one run in which the GPU works, divided by the closure's `calls`."""
        self._empty_caches()
        found.begin()
        run()
        torch.cuda.synchronize()
        return found.busy_ms() / getattr(run, "calls", 1)

    def _empty_caches(self) -> None:
        if self.flush is not None:
            self.flush.zero_()
            torch.cuda.synchronize()

    def _host_ms(self, run: Run, repeats: int) -> tuple[float, Any]:
        output = None
        self._empty_caches()
        started = time.perf_counter_ns()
        for _ in range(repeats):
            output = run()
        if self.flush is not None:
            self.last_enqueue_ms = (time.perf_counter_ns() - started) / 1e6 / repeats
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - started) / 1e6, output

    def _device_ms(self, run: Run, repeats: int) -> tuple[float, Any]:
        assert self.flush is not None  # noqa: S101
        output = None
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if self.cupti is not None:
            self.cupti.begin()
        if self.ranks > 1:
            torch.distributed.barrier()
        self.flush.zero_()
        torch.cuda._sleep(int(min(SPIN_FACTOR * self.enqueue_s, SPIN_MAX_S) * self.clock_hz))
        if self.ranks > 1:
            torch.distributed.all_reduce(self.meeting)  # on the device: the ranks start together
        enqueued = time.perf_counter()
        start.record()
        for _ in range(repeats):
            output = run()
        end.record()
        took_s = time.perf_counter() - enqueued
        self.last_enqueue_ms = 1e3 * took_s / repeats
        self.enqueue_s = max(self.enqueue_s, took_s)
        torch.cuda.synchronize()
        if self.cupti is not None:
            return self.cupti.span_ms(SPIN_KERNEL), output
        return start.elapsed_time(end), output


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector stops the host for tens of ms in the middle of whichever call fills its counter, so it is off.

    As timeit does; what there is by now is collected first.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def waits_for_gpu(run: Run) -> bool:
    """Whether a call makes the host wait for the GPU (a copy to the host, a shape that depends on values)."""
    try:
        with no_host_sync(True):
            run()
    except HostSync:
        return True
    return False


def turns_of(number: int) -> tuple[str, str, str, str]:
    """The sides in the order of round `number`."""
    first, second = SIDES if number % 2 == 0 else SIDES[::-1]
    return first, second, second, first


def busy_turns(runs: dict[str, Run], refill: Refill, watch: Stopwatch) -> list[Sample]:
    """How long the GPU works in a call, in rounds of their own: CUPTI costs the host more than many a launch.

    What the host's clock measures moves with the host; this moves with the kernels alone. Empty without CUPTI, and
    where the device's time is measured anyway.
    """
    found = cupti_clock.clock() if watch.device == "cuda" and not watch.on_device and watch.ranks == 1 else None
    taken: list[Sample] = []
    if found is None:
        return taken
    with found:
        for number in range(BUSY_ROUNDS):
            for order, side in enumerate(turns_of(number)):
                refill.next()
                taken.append(Sample(number, side, order, watch.busy_ms(runs[side], found)))
    return taken


def take_turns(
    runs: dict[str, Run],
    refill: Refill,
    watch: Stopwatch,
    rounds: int,
    warmup_rounds: int,
    check_last: Callable[[str, Any], None],
    progress: Callable[[], None] = lambda: None,
) -> Samples:
    """Time both sides for `rounds` rounds after `warmup_rounds`, by `watch`.

    A round during which the GPU says it runs slowed down is thrown away and counted. A last round more is timed like
    the others and not recorded: there the inputs are values never seen before, check_last(side, output) gets the
    output of the very calls that were timed while their inputs are still in place, and checking disturbs no sample.
    """
    device = watch.device
    taken = Samples(l2_flush_bytes=watch.l2_flush_bytes)
    for side in SIDES:
        enqueues = []
        fastest = math.inf
        for _ in range(max(1, warmup_rounds)):
            refill.next()
            fastest = min(fastest, watch.time_ms(runs[side], 1)[0])
            enqueues.append(watch.last_enqueue_ms)
        told = [took_ms for took_ms in enqueues[1:] or enqueues if took_ms is not None]
        if told:
            taken.enqueue_ms[side] = statistics.median(told)
        run_ms = fastest * getattr(runs[side], "calls", 1)
        taken.repeats[side] = 1 if device == "cuda" else max(1, math.ceil(MIN_SAMPLE_MS_CPU / run_ms))
    with no_garbage_collection(), watch.recording(runs.values()):
        taken.method = watch.method
        for number in range(rounds + 1):
            slowed = set(slowdown_reasons()) if device == "cuda" else set()
            this_round = []
            for order, side in enumerate(turns_of(number)):
                if number < rounds:
                    refill.next()
                else:
                    refill.fresh()
                time_ms, output = watch.time_ms(runs[side], taken.repeats[side])
                this_round.append(Sample(number, side, order, time_ms))
                if number < rounds:
                    for name, seen in getattr(runs[side], "observed", dict)().items():
                        taken.observed.setdefault((side, name), []).append(seen)
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
        taken.busy = busy_turns(runs, refill, watch)
    return taken

"""The minimal profile of one closure: three runs under torch's profiler, and one that counts its work.

Without stacks: times, launches. With memory events: the allocator. With stacks: Python functions, waits, the icicle.
Each alone, for each makes the others slower. What one of them can't do is a note, and the others' results stay.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from serveproof.bench import profiling_hotspots as tables
from serveproof.bench import profiling_trace as trace
from serveproof.bench.profiling_counts import Counted, count
from serveproof.bench.profiling_memory import allocations
from serveproof.bench.profiling_slices import Window, window_of
from serveproof.errors import UserError
from serveproof.profile_records import Profile
from serveproof.results import Ceilings

MOST_CALLS, MOST_OPERATIONS, WINDOW_S, REPEATS = 10, 5000, 0.1, 5


def profile(
    run: Callable[[], Any], device: str, ceilings: Ceilings, out: Path | None = None, trace_bytes: int = 0
) -> Profile:
    """Profile `run` on this device; its trace goes to `out` in at most trace_bytes."""
    notes: list[str] = []
    counted = _counted(run, notes)  # first: it warms up too
    calls, unprofiled_ms = _unprofiled(run, device, sum(counted.times.values()))
    found = Profile(status="passed", backend=getattr(run, "backend", ""), calls=calls, unprofiled_ms=unprofiled_ms)
    with tempfile.TemporaryDirectory(prefix="serveproof-trace-") as name:
        folder = Path(name)
        trace.warm_up(device, folder)
        times, stacks, memory = folder / "times.json", folder / "stacks.json", folder / "memory.json"
        trace.record(run, calls, device, times)
        trace.record(run, calls, device, stacks, stacks=True)
        trace.record(run, 1, device, memory, memory=True)
        if out is not None:
            found.trace_bytes, note = trace.keep(times, out, trace_bytes)
            found.trace = out.name if found.trace_bytes else ""
            notes += [note] if note else []
        fill(found, times, stacks, memory, counted, ceilings, device, notes)
    found.notes = notes
    return found


def fill(
    found: Profile,
    times: Path,
    stacks: Path,
    memory: Path,
    counted: Counted,
    ceilings: Ceilings,
    device: str,
    notes: list[str],
) -> None:
    """Everything that traces tell, into `found`. A trace that can't be read is a note; without times it's an error."""
    calls = found.calls
    try:
        window = window_of(trace.read(times))
    except UserError as error:
        found.status, found.reason = "error", str(error)
        return
    found.profiled_ms = (window.end - window.start) / 1e3 / calls
    rows = tables.rows_of(window, counted)
    found.launches = tables.launches(window, calls, found.unprofiled_ms)
    with_stacks = _window(stacks, notes)
    if with_stacks is not None:
        rows = tables.with_python(rows, with_stacks)
        found.waits = tables.waits(with_stacks, calls, device)
    found.flames = tables.flames(with_stacks or window)
    found.hotspots, found.left_out, found.left_out_ms, found.host_scale = tables.hotspots(
        rows, counted, ceilings, calls, found.unprofiled_ms
    )
    try:
        events = trace.read(memory)
        found.memory = allocations(events, window_of(events), 1, device)
    except UserError as error:
        notes.append(f"the allocator's view is missing: {error}")


def _window(file: Path, notes: list[str]) -> Window | None:
    try:
        return window_of(trace.read(file))
    except UserError as error:
        notes.append(f"Python's functions are missing: {error}")
        return None


def _counted(run: Callable[[], Any], notes: list[str]) -> Counted:
    run()
    if compiled():
        notes.append("FLOPs and bytes are missing: code is compiled here, whose operations torch doesn't tell")
        return Counted()
    try:
        return count(run)
    except Exception as error:  # compiled code and libraries may refuse a dispatch mode, each in its own words
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        notes.append(f"FLOPs and bytes are missing: the operations can't be followed ({first})")
        return Counted()


def compiled() -> bool:
    """Whether torch.compile has compiled anything here: its compiler is loaded then.

    Called under a dispatch mode, compiled code falls back to what it was made of, and stays so.
    """
    return "torch._inductor.compile_fx" in sys.modules


def _unprofiled(run: Callable[[], Any], device: str, operations: int) -> tuple[int, float]:
    """(calls a window, ms of a call when that many follow one another and the host waits once: the quickest window).

    The quickest, as the device's times in a trace are undisturbed ones; no verdict is made of it. operations: of a
    call, where they are known: a trace of many takes longer to read than to record.
    """

    def window(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    if device == "cuda":
        torch.cuda.synchronize()
    window(1)
    calls = max(1, min(MOST_CALLS, int(WINDOW_S / max(window(1), 1e-6)), MOST_OPERATIONS // max(1, operations)))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        agreed = [calls]  # ranks that made different numbers of calls would wait for each other for ever
        torch.distributed.broadcast_object_list(agreed)
        calls = agreed[0]
    return calls, 1e3 * min(window(calls) for _ in range(REPEATS)) / calls

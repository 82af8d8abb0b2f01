"""Traces of torch's profiler as files: recorded, read, cut to a size. Chrome's trace format, which Perfetto opens."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from serveproof.errors import UserError
from serveproof.profile_records import LONGEST_NAME
from serveproof.results import write_atomically

# Ours, in every trace: the whole window, the calls in it, and the wait for the device after them.
WINDOW, CALLS, END = "serveproof:window", "serveproof:calls", "serveproof:end"
ADDRESS = re.compile(r" (object )?at 0x[0-9a-f]+")
BINDING = re.compile(r"pybind11_builtins\.pybind11_detail_function_record\w*")
MODULE = re.compile(r"^(nn\.Module: \w+?)_\d+$")
CUT_TRIES = 6


class Event(msgspec.Struct):
    """One event of a trace: ts and dur in us."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: Any = None
    tid: Any = None
    args: dict[str, Any] = msgspec.field(default_factory=dict)


class _Trace(msgspec.Struct):
    traceEvents: list[Event]


def record(
    run: Callable[[], Any],
    calls: int,
    device: str,
    file: Path,
    *,
    stacks: bool = False,
    memory: bool = False,
) -> None:
    """Profile `calls` calls that follow one another, then one wait for the device, into `file` (.json).

    stacks: with Python's functions. memory: with the allocator's events. Shapes are recorded without stacks only, for
    both together cost more than either.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    seen = profile(activities=activities, record_shapes=not stacks, with_stack=stacks, profile_memory=memory)
    with seen, record_function(WINDOW):
        with record_function(CALLS):
            for _ in range(calls):
                run()
        with record_function(END):
            if device == "cuda":
                torch.cuda.synchronize()
    seen.export_chrome_trace(str(file))


def warm_up(device: str, folder: Path) -> None:
    """The profiler's first start takes a second: not in anybody's trace."""
    record(lambda: torch.zeros(1, device=device), 1, device, folder / "warm_up.json")


def read(file: Path) -> list[Event]:
    """A trace's events, plain or gzipped. UserError for one that is cut short or isn't a trace."""
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return msgspec.json.decode(content, type=_Trace, strict=False).traceEvents
    except (OSError, EOFError, gzip.BadGzipFile, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file.name}: not a whole trace ({error}); it is left out, profile again") from None


def keep(file: Path, out: Path, most_bytes: int) -> tuple[int, str]:
    """Write the trace to `out`, gzipped, in at most `most_bytes`: (its size, a note where it had to be cut).

    A cut trace keeps its earliest events and opens like a whole one.
    """
    whole = msgspec.json.decode(file.read_bytes())
    events = sorted(whole["traceEvents"], key=lambda event: float(event.get("ts", 0.0)))
    kept = len(events)
    for _ in range(CUT_TRIES):
        packed = gzip.compress(msgspec.json.encode({**whole, "traceEvents": events[:kept]}), compresslevel=6, mtime=0)
        if len(packed) <= most_bytes:
            write_atomically(out, lambda temporary, packed=packed: temporary.write_bytes(packed))  # type: ignore[misc]
            note = "" if kept == len(events) else f"the trace holds its first {kept} of {len(events)} events"
            return len(packed), note and f"{note}: profile.trace_mb allows no more"
        kept = int(kept * 0.9 * most_bytes / len(packed))
    return 0, f"no trace kept: not even {kept} events fit into profile.trace_mb"


def clean(name: str) -> str:
    """A name without addresses, bindings' names and the number of a module; bounded."""
    name = MODULE.sub(r"\1", BINDING.sub("torch", ADDRESS.sub("", name)))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"

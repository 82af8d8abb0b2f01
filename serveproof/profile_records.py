"""Records of profiles: where the time of one call goes. Units in the names, every list bounded.

A profile's figures serve understanding; no verdict is made of them. Times are those of a process that measures nothing
else. Bounds are held when a record is written (longer lists are cut and counted) and checked when it is read.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from serveproof.results import Metric, Provenance, Record, Status

Mode = Literal["none", "minimal", "deep_dive"]
MODES: tuple[Mode, ...] = ("none", "minimal", "deep_dive")
Kind = Literal["kernel", "copy", "operation", "launch", "wait", "python", "range"]

MOST_HOTSPOTS, MOST_FLAMES, MOST_WAITS, MOST_POINTS, MOST_KERNELS, LONGEST_NAME = 60, 150, 12, 200, 60, 240
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]


class Hotspot(Record):
    """One row of the table of where a call's time goes; `share` is of the call without a profiler.

    kind: a kernel or copy of the device; on a host an operation of torch, a launch, a wait for the device, a Python
    function outside any operation, or a named range with nothing known inside. operation, shapes: the operation of
    torch that it belongs to. flops, bytes: the operation's useful work, None where it isn't known. roofline_ms: the
    least time for that work by this machine's measured ceilings. saved_ms: what would pay: the time saved a call if it
    ran at its roofline; all of it where the work isn't known (`bound_by` unknown) or where there is none (host).
    """

    kind: Kind
    name: Name
    operation: Name
    shapes: Name
    within: Name
    count: float
    time_ms: float
    share: float
    flops: float | None
    bytes: float | None
    roofline_ms: float | None
    bound_by: Literal["bytes", "flops", "host", "unknown"]
    saved_ms: float


class Flame(Record):
    """One box of the icicle: `start` and `width` are shares of the whole, `depth` counts from 0 at the top."""

    name: Name
    kind: Kind
    depth: int
    start: float
    width: float


class Wait(Record):
    """A place where the host waits for the device, with the Python stack that caused it, outermost first.

    On a CPU: where it would wait on a GPU, because a value is read.
    """

    what: Name
    count: float
    time_ms: float
    stack: Annotated[list[Name], msgspec.Meta(max_length=16)]


class Launches(Record):
    """Whether the device waits for the host.

    busy_ms: device time of a call. gap_ms: device idle between a call's first and last kernel while profiled, which
    is more than without a profiler. idle_share: 1 - busy_ms / unprofiled_ms. launch_bound: that is large, and it is
    not waits for the device's results that cause it.
    """

    kernels: float
    launches: float
    busy_ms: float
    gap_ms: float
    idle_share: float
    launch_bound: bool


class Allocations(Record):
    """The allocator's view of a call. top: operations by bytes allocated: (name, allocations, bytes).

    timeline: (ms from the start, bytes allocated above the start). state: what torch's CUDA allocator tells of itself.
    """

    allocations: float
    allocated_bytes: float
    peak_bytes: int
    timeline: Annotated[list[tuple[float, int]], msgspec.Meta(max_length=MOST_POINTS)]
    top: Annotated[list[tuple[Name, float, float]], msgspec.Meta(max_length=10)]
    state: dict[str, Metric] = msgspec.field(default_factory=dict)


class Counters(Record):
    """One kernel's hardware counters, by Nsight Compute: sums over its launches in one call, shares weighted by time.

    metrics: raw names and values. flops: counted floating-point operations, tensor cores' among them. Shares are of
    the unit's peak, 0 to 1. fraction: of this machine's measured roofline, by the counted bytes and flops. None where
    the GPU doesn't tell.
    """

    kernel: Name
    launches: int
    time_ms: float
    dram_bytes: float | None
    dram_bytes_per_s: float | None
    dram_share: float | None
    l2_bytes_per_s: float | None
    l2_share: float | None
    tensor_share: float | None
    occupancy: float | None
    flops: float | None
    fraction: float | None
    bound_by: Literal["bytes", "flops", "unknown"]
    metrics: dict[str, float] = msgspec.field(default_factory=dict)


class Profile(Record):
    """One closure's profile. Times without a status `passed` don't exist.

    calls: how many followed one another in the window. unprofiled_ms, profiled_ms: one call, without and with the
    profiler. host_scale: by what host rows' times were multiplied so that all rows together are unprofiled_ms.
    left_out: rows beyond the bound, with their time. notes: one line each, of what is missing and why.
    """

    status: Status
    reason: str = ""
    backend: str = ""
    calls: int = 0
    unprofiled_ms: float = 0.0
    profiled_ms: float = 0.0
    host_scale: float = 1.0
    hotspots: Annotated[list[Hotspot], msgspec.Meta(max_length=MOST_HOTSPOTS)] = msgspec.field(default_factory=list)
    left_out: int = 0
    left_out_ms: float = 0.0
    flames: Annotated[list[Flame], msgspec.Meta(max_length=MOST_FLAMES)] = msgspec.field(default_factory=list)
    waits: Annotated[list[Wait], msgspec.Meta(max_length=MOST_WAITS)] = msgspec.field(default_factory=list)
    launches: Launches | None = None
    memory: Allocations | None = None
    counters: Annotated[list[Counters], msgspec.Meta(max_length=MOST_KERNELS)] = msgspec.field(default_factory=list)
    trace: str = ""
    trace_bytes: int = 0
    notes: list[str] = msgspec.field(default_factory=list)


class ProfileCase(Record):
    """Both sides of one case. dtype: of the pair's work, whose matrix rate the counters are held against."""

    case: str
    tier: str
    dtype: str
    baseline: Profile
    optimized: Profile


class ProfileRecord(Record):
    """results/{hardware}/pairs/{pair}/profile.json; its traces lie beside it in traces/.

    seconds, measure_seconds: what the profile and the pair's measurement took; measure_seconds is None without one.
    """

    pair: str
    hardware: str
    mode: Mode
    code_sha: str
    cases: list[ProfileCase]
    notes: list[str]
    seconds: float
    measure_seconds: float | None
    provenance: Provenance


class DecoderPoint(Record):
    """One step of a decoder: `batch` sequences, each with `context` tokens (prefill: all new; decode: one new)."""

    phase: Literal["prefill", "decode"]
    batch: int
    context: int
    tokens: int
    profile: Profile


class DecoderProfileRecord(Record):
    """results/{hardware}/decoder_profile.json. model: the config's name; weights are random in its shape."""

    hardware: str
    model: str
    parameters: int
    dtype: str
    mode: Mode
    points: list[DecoderPoint]
    notes: list[str]
    seconds: float
    provenance: Provenance

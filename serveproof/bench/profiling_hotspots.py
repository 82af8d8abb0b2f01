"""From slices to tables: where the time goes and what would pay, the icicle, the waits, whether the device waits."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import msgspec

from serveproof.bench.profiling_counts import Counted, Work
from serveproof.bench.profiling_slices import READS, Node, Slice, Window
from serveproof.bench.profiling_trace import END
from serveproof.profile_records import (
    LONGEST_NAME,
    MOST_FLAMES,
    MOST_HOTSPOTS,
    MOST_WAITS,
    Flame,
    Hotspot,
    Kind,
    Launches,
    Wait,
)
from serveproof.results import Ceilings

DEVICE = ("kernel", "copy")
LEAST_WIDTH = 0.004
DEEPEST = 24
MOST_SHAPES = 8
# The device waits for the host when it would idle this share of a call's time without a profiler.
LAUNCH_BOUND = 0.2
INTERNALS = re.compile(r"^(<built-in|torch/|contextlib\.py|serveproof/bench/)")
NOTHING_KNOWN = "Python, outside any operation"
Key = tuple[Kind, str, str, str, str]  # kind, name, operation, shapes, within


@dataclass
class Rows:
    """Time in us and entries by row, all over the window; `operations`: in how many rows an operation's time lies."""

    times: dict[Key, float]
    counts: dict[Key, float]


def rows_of(window: Window, counted: Counted) -> Rows:
    """Every slice's time by what it is: a kernel, an operation, or what the host did."""
    times: dict[Key, float] = defaultdict(float)
    frames: dict[Key, set[int]] = defaultdict(set)
    known: dict[int, tuple[Key, int]] = {}
    for one in window.owned:
        if id(one.node) not in known:
            key = _key(one.node, counted)
            known[id(one.node)] = key, id(_counting_node(one.node, key))
        key, frame = known[id(one.node)]
        times[key] += one.end - one.start
        frames[key].add(frame)
    counts = {key: float(sum(window.starts.get(node, 0) for node in nodes)) for key, nodes in frames.items()}
    return Rows(dict(times), counts)


def _operation(node: Node, counted: Counted) -> Node | None:
    """The operation that a frame belongs to: the innermost whose work is known, else the innermost."""
    operations = [one for one in node.path() if one.kind == "operation"]
    known = (one for one in operations if counted.of(one.name, one.shapes) is not None)
    return next(known, operations[0] if operations else None)


def _key(node: Node, counted: Counted) -> Key:
    operation = _operation(node, counted)
    within = next((one.name for one in node.path() if one.kind == "range" and one.parent is not None), "")
    name, shapes = (operation.name, operation.shapes) if operation else ("", "")
    if node.kind in DEVICE:
        return node.kind, node.name, name, shapes, within
    if node.kind == "operation" and operation is not None:
        return "operation", name, name, shapes, within
    if node.kind == "wait" and node.name == END:
        return "wait", "wait for the device after the last call", "", "", ""
    if node.kind == "range":
        return "range", NOTHING_KNOWN, "", "", within
    return node.kind, node.name, name, shapes, within


def _counting_node(node: Node, key: Key) -> Node:
    """Whose entries count as a row's: of an operation's the operation itself, not what it calls."""
    if key[0] != "operation":
        return node
    return next(one for one in node.path() if one.kind == "operation" and one.name == key[1] and one.shapes == key[3])


def with_python(rows: Rows, stacks: Window) -> Rows:
    """The time outside operations by Python function: the share of each is that of a second run, with stacks.

    The second run's own times are no good, for following each function costs time; its shares say where to look.
    """
    outside_us = sum(took for key, took in rows.times.items() if key[0] == "range")
    seen: dict[tuple[str, str], float] = defaultdict(float)
    entered: dict[tuple[str, str], set[int]] = defaultdict(set)
    for one in stacks.owned:
        if one.node.kind in ("python", "range"):
            within = next((up.name for up in one.node.path() if up.kind == "range" and up.parent is not None), "")
            place = (one.node.name if one.node.kind == "python" else NOTHING_KNOWN, within)
            seen[place] += one.end - one.start
            entered[place].add(id(one.node))
    total = sum(seen.values())
    if not outside_us or not total:
        return rows
    times = {key: took for key, took in rows.times.items() if key[0] != "range"}
    counts = {key: rows.counts[key] for key in times}
    for (name, within), took in seen.items():
        key: Key = ("python", name, "", "", within)
        times[key] = outside_us * took / total
        counts[key] = float(sum(stacks.starts.get(node, 0) for node in entered[name, within]))
    return Rows(times, counts)


def hotspots(
    rows: Rows, counted: Counted, ceilings: Ceilings, calls: int, unprofiled_ms: float
) -> tuple[list[Hotspot], int, float, float]:
    """(the table, what would pay most first; rows left out, their ms; the host's scale). Times are of one call.

    The profiler slows the host and not the device's kernels: host rows are scaled so that all together are the time of
    a call without a profiler.
    """
    device_us = sum(took for key, took in rows.times.items() if key[0] in DEVICE)
    host_us = sum(rows.times.values()) - device_us
    scale = min(1.0, max(0.0, (1e3 * unprofiled_ms * calls - device_us) / host_us)) if host_us > 0 else 1.0
    # Where an operation's work is its kernels', its own rows on the host carry none of it.
    launching = {(key[2], key[3]) for key in rows.times if key[0] in DEVICE}
    shared: dict[tuple[str, str], float] = defaultdict(float)
    for (kind, _, operation, shapes, _), took in rows.times.items():
        if kind in DEVICE or (kind == "operation" and (operation, shapes) not in launching):
            shared[operation, shapes] += took
    whole_ms = (device_us + host_us * scale) / 1e3 / calls
    table = []
    for key, took in rows.times.items():
        kind, _, operation, shapes, _ = key
        time_ms = took * (1.0 if kind in DEVICE else scale) / 1e3 / calls
        works = kind in DEVICE or (kind == "operation" and (operation, shapes) not in launching)
        work = counted.of(operation, shapes) if works else None
        part = _part(work, counted.times_of(operation, shapes), took, shared[operation, shapes])
        table.append(_row(key, rows.counts[key] / calls, time_ms, whole_ms, part, ceilings, works))
    table = merged(table)
    # What takes least time is left out: never what takes much and has nothing to gain.
    table.sort(key=lambda row: -row.time_ms)
    kept, rest = table[:MOST_HOTSPOTS], table[MOST_HOTSPOTS:]
    kept.sort(key=lambda row: (-row.saved_ms, -row.time_ms))
    return kept, len(rest), sum(row.time_ms for row in rest), scale


def merged(table: list[Hotspot]) -> list[Hotspot]:
    """An operation or kernel of many shapes becomes one row: else the table would be as long as the call."""
    alike: dict[tuple[str, ...], list[Hotspot]] = defaultdict(list)
    for row in table:
        alike[row.kind, row.name, row.operation, row.within].append(row)
    found = []
    for rows in alike.values():
        if len(rows) <= MOST_SHAPES:
            found += rows
            continue
        largest = max(rows, key=lambda row: row.time_ms)
        known = all(row.roofline_ms is not None for row in rows)
        found.append(
            msgspec.structs.replace(
                largest,
                shapes=f"{len(rows)} shapes; most time: {largest.shapes}"[:LONGEST_NAME],
                count=sum(row.count for row in rows),
                time_ms=sum(row.time_ms for row in rows),
                share=sum(row.share for row in rows),
                saved_ms=sum(row.saved_ms for row in rows),
                flops=sum(row.flops or 0.0 for row in rows) if known else None,
                bytes=sum(row.bytes or 0.0 for row in rows) if known else None,
                roofline_ms=sum(row.roofline_ms or 0.0 for row in rows) if known else None,
                bound_by=largest.bound_by if known or largest.bound_by == "host" else "unknown",
            )
        )
    return found


def _part(work: Work | None, times: int, took: float, of: float) -> Work | None:
    """A row's part of its operation's work of a call: by time, where several kernels do it."""
    if work is None or not of:
        return None
    share = times * took / of
    return Work(work.flops * share, work.bytes * share, work.dtype)


def least_ms(work: Work, ceilings: Ceilings) -> tuple[float, Literal["bytes", "flops"]]:
    """The least time for some work by the measured ceilings; FLOPs of a dtype without a measured rate bind nothing."""
    rate = ceilings.matmul_flops_per_s.get(work.dtype)
    flops_ms = 1e3 * work.flops / rate if rate else 0.0
    bytes_ms = 1e3 * work.bytes / ceilings.read_bandwidth_bytes_per_s
    return (flops_ms, "flops") if flops_ms > bytes_ms else (bytes_ms, "bytes")


def _row(
    key: Key, count: float, time_ms: float, whole_ms: float, work: Work | None, ceilings: Ceilings, works: bool
) -> Hotspot:
    kind, name, operation, shapes, within = key
    roofline_ms, bound_by = None, "unknown" if works else "host"
    if work is not None:
        roofline_ms, bound_by = least_ms(work, ceilings)
        # A view computes nothing and moves nothing: what it takes is the host's.
        bound_by = bound_by if roofline_ms else "host"
    return Hotspot(
        kind=kind,
        name=name,
        operation=operation,
        shapes=shapes[:LONGEST_NAME],
        within=within,
        count=count,
        time_ms=time_ms,
        share=time_ms / whole_ms if whole_ms else 0.0,
        flops=work.flops if work else None,
        bytes=work.bytes if work else None,
        roofline_ms=roofline_ms,
        bound_by=bound_by,  # type: ignore[arg-type]
        # Cached inputs can beat the bandwidth that was measured on memory: nothing is lost there.
        saved_ms=max(0.0, time_ms - (roofline_ms or 0.0)),
    )


def flames(window: Window) -> list[Flame]:
    """The icicle: each frame as wide as the time of all that lies in it. Narrow and deep frames go into their parents'.

    A frame's children stand at its left, widest first; what remains at its right is its own.
    """
    widths: dict[int, float] = defaultdict(float)
    for one in window.owned:
        for node in one.node.path():
            widths[id(node)] += one.end - one.start
    whole = widths[id(window.root)] or 1.0
    found: list[Flame] = []

    def draw(node: Node, depth: int, start: float) -> None:
        width = widths[id(node)] / whole
        found.append(Flame(node.name, node.kind, depth, start, width))
        if depth < DEEPEST:
            for child in sorted(node.children.values(), key=lambda one: -widths[id(one)]):
                if widths[id(child)] / whole >= LEAST_WIDTH:
                    draw(child, depth + 1, start)
                    start += widths[id(child)] / whole

    draw(window.root, 0, 0.0)
    # A bound on all: the narrowest go, and with a frame goes all that lies in it, for that is no wider.
    if len(found) > MOST_FLAMES:
        least = sorted((one.width for one in found), reverse=True)[MOST_FLAMES - 1]
        found = [one for one in found if one.width >= least][:MOST_FLAMES]
    return found


def waits(stacks: Window, calls: int, device: str) -> list[Wait]:
    """Where the host waits for the device, longest first, with its stack: from the run that followed Python.

    On a CPU: the operations that read a value, which would wait on a GPU.
    """
    places: dict[int, tuple[Node, float]] = {}
    for one in stacks.host:
        for node in one.node.path():
            if node.name != END and _is_wait(node, device):
                took = places.get(id(node), (node, 0.0))[1]
                places[id(node)] = (node, took + one.end - one.start)
                break
    found = [
        Wait(node.name, stacks.starts[id(node)] / calls, took / 1e3 / calls, _stack(node))
        for node, took in places.values()
        if not (node.parent and any(_is_wait(up, device) for up in node.parent.path()))
    ]
    return sorted(found, key=lambda one: -one.time_ms)[:MOST_WAITS]


def _is_wait(node: Node, device: str) -> bool:
    return node.kind == "wait" if device == "cuda" else node.kind == "operation" and node.name in READS


def _stack(node: Node) -> list[str]:
    """The Python functions around a frame, outermost first; torch's own and the harness's are left out."""
    frames = [one.name for one in node.path() if one.kind == "python" and not INTERNALS.match(one.name)]
    return frames[:16][::-1]


def launches(window: Window, calls: int, unprofiled_ms: float) -> Launches | None:
    """Whether the device waits for the host; None where there is no device."""
    if not window.device:
        return None
    busy_us = sum(one.end - one.start for one in window.device)
    gap_us = window.device[-1].end - window.device[0].start - busy_us
    busy_ms = busy_us / 1e3 / calls
    idle_share = max(0.0, 1.0 - busy_ms / unprofiled_ms) if unprofiled_ms else 0.0
    idle: dict[bool, float] = defaultdict(float)
    for one in _idle(window):
        idle[one.node.kind == "wait"] += one.end - one.start
    nodes = {id(one.node): one.node for one in window.device}
    issued = {id(node): node for node in _all(window.root) if node.kind == "launch" and "aunch" in node.name}
    return Launches(
        kernels=sum(window.starts[key] for key, node in nodes.items() if node.kind == "kernel") / calls,
        launches=sum(window.starts[key] for key in issued) / calls,
        busy_ms=busy_ms,
        gap_ms=gap_us / 1e3 / calls,
        idle_share=idle_share,
        launch_bound=idle_share >= LAUNCH_BOUND and idle[True] <= idle[False],
    )


def _idle(window: Window) -> list[Slice]:
    return [one for one in window.owned if one.node.kind not in DEVICE]


def _all(node: Node) -> list[Node]:
    return [node, *(below for child in node.children.values() for below in _all(child))]

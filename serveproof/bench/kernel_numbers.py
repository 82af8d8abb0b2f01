"""A kernel file's numbers beside its profile: one side's memory and rate, or both sides beside each other (--compare).

The harness's own parts: times in turns from several processes, memory and page faults from a process a side.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from tabulate import tabulate

from serveproof import pairs
from serveproof.bench.job import Case, CaseReply, Job
from serveproof.bench.processes import run_process
from serveproof.profile_records import Profile
from serveproof.results import Estimate, MeasureCase, Metric, SideSummary


def size(value: float, unit: str) -> str:
    """A figure with its unit, bytes as MB."""
    return f"{value / 1e6:.4g} MB" if unit == "bytes" else f"{value:.6g} {unit}".strip()


def spread(figure: Estimate) -> str:
    return f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}] {figure.unit}"


def of_side(pair: str, case: Case, profile: Profile, probed: CaseReply) -> list[str]:
    """One side's numbers, a line each: time and rate with no profiler on; memory by the probe."""
    lines = []
    if profile.unprofiled_ms:
        work = pairs.load(pair).baseline.work(case.axes)
        lines.append(f"time: {profile.unprofiled_ms:.4g} ms a call")
        if "items" in work:
            lines.append(f"throughput: {1e3 * work['items'] / profile.unprofiled_ms:.4g} {work['item']}/s")
    if probed.status != "passed":
        return [*lines, f"memory: {probed.status}: {(probed.reason.strip().splitlines() or [''])[-1]}"]
    lines.append(f"peak memory: {size(probed.peak_memory_bytes, 'bytes')}")
    lines += [f"{name.replace('_', ' ')}: {size(*one[:2])} ({one[2]})" for name, one in probed.metrics.items()]
    return lines


def probe(job: Job, side: str, served: dict[str, str]) -> dict[str, CaseReply]:
    """case -> memory and page faults of one side, in a process that runs nothing else."""
    asked = msgspec.structs.replace(job, mode="probe", side=side, served=served)
    return {reply.case: reply for reply in run_process(asked)}


def beside(case: MeasureCase) -> str:
    """Both sides of a measured case as a table, each figure with the optimized side's share of the baseline's."""
    if case.status != "passed" or case.baseline is None or case.optimized is None or case.speedup is None:
        return f"{case.status}: {(case.reason.strip().splitlines() or [''])[-1]}"
    rows = list(_rows(case.baseline, case.optimized))
    ratio = f"{case.speedup.value:.3g} [{case.speedup.low:.3g}, {case.speedup.high:.3g}]"
    rows.insert(0, ("speedup", "", "", f"{ratio} x"))
    heads = ("", "baseline", "optimized", "optimized / baseline")
    return tabulate(rows, headers=heads, disable_numparse=True)


def _rows(baseline: SideSummary, optimized: SideSummary) -> Iterator[tuple[str, str, str, str]]:
    yield "time", spread(baseline.time), spread(optimized.time), f"{optimized.time.value / baseline.time.value:.3g}"
    before, after = baseline.throughput, optimized.throughput
    if before and after:
        yield "throughput", spread(before), spread(after), f"{after.value / before.value:.3g}"
    left, right = (Metric(side.peak_memory_bytes, "bytes") for side in (baseline, optimized))
    yield _row("peak_memory", left, right)
    for name in dict.fromkeys((*baseline.metrics, *optimized.metrics)):
        yield _row(name, baseline.metrics.get(name), optimized.metrics.get(name))


def _row(name: str, left: Metric | None, right: Metric | None) -> tuple[str, str, str, str]:
    before, after = ("-" if one is None else size(one.value, one.unit) for one in (left, right))
    ratio = f"{right.value / left.value:.3g}" if left and right and left.value else ""
    return name.replace("_", " "), before, after, ratio


def notes(case: MeasureCase) -> list[str]:
    """What the counted figures are, each said once."""
    said: dict[str, list[str]] = {}
    for side in filter(None, (case.baseline, case.optimized)):
        for name, one in side.metrics.items():
            said.setdefault(name, []).append(one.note)
    told = {name: " | ".join(dict.fromkeys(filter(None, found))) for name, found in said.items()}
    return [f"{name.replace('_', ' ')}: {note}" for name, note in told.items() if note]

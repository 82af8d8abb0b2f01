"""Profiles a pair: starts the processes one after another, puts what they tell together. Never beside a timing.

A tool that is missing, or that may not read what it wants, is a note in the record, and the rest goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serveproof import pairs
from serveproof.bench import profiling_counters
from serveproof.bench.job import Case, Job
from serveproof.bench.processes import answered
from serveproof.bench.profiling_job import CounterJob, CounterReply, Options, ProfileJob, ProfileReply, RawKernel
from serveproof.profile_records import Counters, Profile, ProfileCase
from serveproof.results import SIDES, Ceilings

if TYPE_CHECKING:  # started by name: what they import is part of what a profile depends on
    from serveproof.bench import profiling_ncu, profiling_worker  # noqa: F401

WORKER, COUNTING_WORKER = "serveproof.bench.profiling_worker", "serveproof.bench.profiling_ncu"
LIMIT_S, COUNTING_LIMIT_S = 1800, 240
# Nsight Compute runs each kernel a dozen times, memory saved and restored: 400 took longer than two minutes on an H100.
# Of a call with more only the first are counted.
MOST_COUNTED = 100
NSYS = ("nsys", "profile", "--trace=cuda,nvtx,osrt", "--force-overwrite=true", "--output")


def profile_pair(
    job: Job, ceilings: Ceilings, options: Options, traces: Path
) -> tuple[list[ProfileCase], list[str], dict[str, dict[str, list[RawKernel]]]]:
    """(each case with both sides, notes, raw counters by case and side). `job` is as for a measurement.

    job.served: the candidate to profile, by case; where it names none, the fastest in the profiling process.
    """
    traces.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    fields = {name: getattr(job, name) for name in Job.__struct_fields__}
    asked = ProfileJob(**fields, ceilings=ceilings, traces=str(traces), trace_bytes=options.trace_bytes)
    asked.mode = "profile"
    profiles = minimal(asked, WORKER, LIMIT_S)
    dtypes = work_dtypes(job)
    raw: dict[str, dict[str, list[RawKernel]]] = {}
    if options.mode == "deep_dive":
        raw = deep_dive(job, profiles, dtypes, ceilings, notes)
    if options.nsys:
        notes += nsight_systems(asked, traces, options.trace_bytes)
    left_out = Profile(status="skipped", reason=f"only {job.side} was asked for")
    found = []
    for case in job.cases:
        sides = {side: profiles[case.case].get(side, left_out) for side in SIDES}
        found.append(ProfileCase(case.case, case.tier, dtypes[case.case], **sides))
    return found, notes, raw


def minimal(job: ProfileJob, worker: str, limit_s: int) -> dict[str, dict[str, Profile]]:
    """case -> side -> profile, from one process (or one a rank). A crash is every side's error."""
    answer, failure = answered(job, worker, limit_s)
    if not failure:
        return msgspec.json.decode(answer, type=ProfileReply).cases
    broken = Profile(status="error", reason=f"the profiling process ended with {failure}")
    sides = [job.side] if job.side else list(SIDES)
    return {case.case: dict.fromkeys(sides, broken) for case in job.cases}


def work_dtypes(job: Job) -> dict[str, str]:
    """case -> the dtype of its work, which says which matrix rate binds it."""
    baseline = pairs.load(job.pair).baseline
    return {case.case: str(baseline.work(case.axes)["dtype"]) for case in job.cases}


def deep_dive(
    job: Job,
    profiles: dict[str, dict[str, Profile]],
    dtypes: dict[str, str],
    ceilings: Ceilings,
    notes: list[str],
) -> dict[str, dict[str, list[RawKernel]]]:
    """Hardware counters of every side that was profiled, into its profile; returns them raw."""
    if job.device != "cuda":
        notes.append("hardware counters are a GPU's: on a CPU deep_dive is minimal")
        return {}
    if job.ranks > 1:
        notes.append("no hardware counters: a kernel that is run again would wait for the other ranks, which don't")
        return {}
    known, problem = profiling_counters.known_metrics()
    if problem:
        notes.append(problem)
        return {}
    metrics, missing = profiling_counters.wanted(known)
    if missing:
        notes.append(f"this GPU doesn't tell {', '.join(missing)}")
    raw: dict[str, dict[str, list[RawKernel]]] = {}
    for case in job.cases:
        for side, profile in profiles[case.case].items():
            if profile.status != "passed":
                continue
            reply = count_side(job, case, side, profile, metrics)
            profile.notes += [reply.reason] if reply.reason else []
            raw.setdefault(case.case, {})[side] = reply.kernels
            profile.counters = _rows(reply.kernels, ceilings, dtypes[case.case], profile.notes)
    return raw


def count_side(job: Job, case: Case, side: str, profile: Profile, metrics: list[str]) -> CounterReply:
    """One side under Nsight Compute, in a process of its own."""
    kernels = profile.launches.kernels if profile.launches else 0.0
    many = kernels > MOST_COUNTED
    fields = {name: getattr(job, name) for name in Job.__struct_fields__}
    asked = CounterJob(**fields, metrics=metrics, most_operations=MOST_COUNTED if many else 0, limit_s=COUNTING_LIMIT_S)
    asked.mode, asked.side, asked.cases, asked.served = "count", side, [case], {case.case: profile.backend}
    answer, failure = answered(asked, COUNTING_WORKER, COUNTING_LIMIT_S + 10)
    if not failure:
        reply = msgspec.json.decode(answer, type=CounterReply)
        if many and 0 < len(reply.kernels) < kernels:  # a CUDA graph is one operation, and all its kernels are counted
            profile.notes.append(f"counted: a call's first {len(reply.kernels)} of {kernels:.0f} kernels")
        return reply
    last = failure.strip().splitlines()[-1]
    return CounterReply(reason=f"no hardware counters within {COUNTING_LIMIT_S} s: the process ended with {last[:200]}")


def _rows(kernels: list[RawKernel], ceilings: Ceilings, dtype: str, notes: list[str]) -> list[Counters]:
    rows, left_out = profiling_counters.counters(kernels, ceilings, dtype)
    if left_out:
        notes.append(f"{left_out} kernels with less time are left out of the counters")
    return rows


def nsight_systems(job: ProfileJob, traces: Path, most_bytes: int) -> list[str]:
    """One run of the whole profiling process under nsys; its report stays where it is small enough. Notes."""
    if shutil.which("nsys") is None:
        return ["Nsight Systems (nsys) is not installed: no report of it"]
    out = traces / "nsight_systems.nsys-rep"
    again = msgspec.structs.replace(job, traces="", trace_bytes=0)
    _, failure = answered(again, WORKER, LIMIT_S, (*NSYS, str(out.with_suffix(""))))
    if failure or not out.exists():
        last = (failure.strip().splitlines() or ["it wrote no report"])[-1]
        return [f"Nsight Systems: {last[:300]}"]
    if out.stat().st_size > most_bytes:
        size = out.stat().st_size
        out.unlink()
        return [f"Nsight Systems' report had {size} bytes, more than profile.trace_mb allows: not kept"]
    return [f"Nsight Systems' report: {out.name}"]

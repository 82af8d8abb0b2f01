"""Measures one pair: starts the processes one after another, puts their samples together, summarizes each case."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, cast

import msgspec
import numpy as np
import polars as pl

from serveproof import pairs
from serveproof.bench import roofline, statistics
from serveproof.bench.job import Case, CaseReply, Job
from serveproof.bench.processes import run_process
from serveproof.hardware.clocks import cpu_pressure_percent
from serveproof.results import SIDES, Candidate, Ceilings, Estimate, MeasureCase, Metric, SideSummary, Timing
from serveproof.tables import GPU_BUSY, SAMPLES_SCHEMA

# From here the GPU waits for the host: enqueuing a call takes this share of its time, or more.
LAUNCH_BOUND = 0.9


def samples_frame(replies: list[list[CaseReply]]) -> pl.DataFrame:
    """All samples as one table, columns as SAMPLES_SCHEMA says and GPU_BUSY; `replies` holds one list per process."""
    rows = [
        (reply.case, process, *sample, busy.get(sample[:3]))
        for process, cases in enumerate(replies)
        for reply in cases
        for busy in [{one[:3]: one[3] for one in reply.busy}]
        for sample in reply.samples
    ]
    return pl.DataFrame(rows, schema=SAMPLES_SCHEMA | {GPU_BUSY: pl.Float64}, orient="row")


def times_by_process(samples: pl.DataFrame, case: str, side: str, column: str = "time_ms") -> list[statistics.Floats]:
    """Per process, this side's times in ms, or what `column` holds; nothing of a process that has none of it."""
    chosen = samples.filter((pl.col("case") == case) & (pl.col("side") == side)).drop_nulls(column)
    return [group[column].to_numpy() for _, group in chosen.group_by("process", maintain_order=True)]


def ratios_by_process(samples: pl.DataFrame, case: str) -> list[statistics.Floats]:
    """Per process, one baseline/optimized ratio per round: the geometric means of the round's two turns each."""
    logs = (
        samples.filter(pl.col("case") == case)
        .group_by("process", "round", "side")
        .agg(pl.col("time_ms").log().mean().alias("log_ms"))
        .pivot(on="side", index=["process", "round"], values="log_ms")
        .sort("process", "round")
    )
    return [
        np.exp((group["baseline"] - group["optimized"]).to_numpy())
        for _, group in logs.group_by("process", maintain_order=True)
    ]


def candidates_of(replies: list[CaseReply]) -> list[Candidate]:
    """Every back end that could have served the optimized side, fastest first, refusals last; times as the process had
    them that chose: the first.
    """
    served = Counter(reply.backends.get("optimized", "") for reply in replies)
    names = dict.fromkeys(name for reply in replies for name in (*reply.times_ms, *reply.refusals))
    found = []
    for name in names:
        time_ms = next((reply.times_ms[name] for reply in replies if name in reply.times_ms), None)
        reason = next((reply.refusals[name] for reply in replies if name in reply.refusals), "")
        found.append(Candidate(name, time_ms, served[name], reason))
    return sorted(found, key=lambda one: (one.time_ms is None, one.time_ms or 0.0))


def served_by(replies: list[CaseReply]) -> dict[str, str]:
    """The candidate that one process chose for each case; a case without candidates has none."""
    return {reply.case: reply.backends["optimized"] for reply in replies if reply.times_ms}


def refusals_told(replies: list[CaseReply]) -> str:
    """For the log of a job: which back ends serve none of its cases, and the first one's reason; '' where all serve.

    A library that is installed and can't be imported refuses like a shape that it can't take, and is missed like that.
    """
    reasons = {name: reason for reply in replies for name, reason in reply.refusals.items()}
    never = [name for name in reasons if not any(name in reply.times_ms for reply in replies)]
    return f"; refused: {', '.join(never)} ({reasons[never[0]]})" if never else ""


def observed_medians(replies: list[CaseReply], side: str) -> dict[str, tuple[float, str, str]]:
    """What a side's closures told of themselves: per figure the median over processes of each one's median."""
    found: dict[str, tuple[float, str, str]] = {}
    told = [reply.observed.get(side, {}) for reply in replies]
    for name in dict.fromkeys(name for one in told for name in one):
        mine = [one[name] for one in told if name in one]
        found[name] = (median(value for value, _, _ in mine), *mine[-1][1:])
    return found


def summarize(
    case: Case,
    work: dict[str, Any],
    ceilings: Ceilings,
    replies: list[CaseReply],
    probes: dict[str, CaseReply],
    samples: pl.DataFrame,
    timing: Timing,
    device: str,
) -> MeasureCase:
    """One case's record from every process's reply; a time exists only when all of them passed."""
    base = MeasureCase(case=case.case, tier=case.tier, axes=case.axes, status="passed", reason="")
    for reply in (*replies, *probes.values()):
        if reply.status != "passed":
            return msgspec.structs.replace(base, status=reply.status, reason=reply.reason)
    try:
        speedup = statistics.estimate_positive(ratios_by_process(samples, case.case), "x")
        times = {side: statistics.estimate_positive(times_by_process(samples, case.case, side), "ms") for side in SIDES}
    except ValueError as error:
        reason = f"{error}; {len(timing.discard_reasons)} rounds were thrown away: {'; '.join(timing.discard_reasons)}"
        return msgspec.structs.replace(base, status="error", reason=reason)
    least_ms, bound_by = roofline.roofline_ms(work, ceilings)
    fractions = {side: statistics.inverted(times[side], least_ms, "of roofline") for side in SIDES}
    for side in SIDES:
        if roofline.too_fast(fractions[side], device):
            reason = (
                f"{side}: {times[side].value:.4g} ms is faster than the roofline allows "
                f"({least_ms:.4g} ms by {bound_by}): "
                f"the work is miscounted, the output is cached, or the ceilings were measured on a disturbed machine"
            )
            return msgspec.structs.replace(base, status="error", reason=reason)

    counted = {side: reply.metrics for side, reply in probes.items()}

    def side_summary(side: str) -> SideSummary:
        throughput: Estimate | None = None
        if "items" in work:
            throughput = statistics.inverted(times[side], 1e3 * work["items"], f"{work['item']}/s")
        busy = times_by_process(samples, case.case, side, GPU_BUSY)
        backends = Counter(reply.backends.get(side, "") for reply in replies)
        enqueues = [reply.enqueue_ms[side] for reply in replies if side in reply.enqueue_ms]
        enqueue_ms = median(enqueues) if enqueues else None
        waits = enqueue_ms is not None and enqueue_ms >= LAUNCH_BOUND * times[side].value
        return SideSummary(
            time=times[side],
            roofline_fraction=fractions[side],
            throughput=throughput,
            peak_memory_bytes=probes[side].peak_memory_bytes if side in probes else 0,
            backend=" / ".join(name for name, _ in backends.most_common()),
            metrics={
                name: Metric(value=value, unit=unit, note=note)
                for name, (value, unit, note) in (observed_medians(replies, side) | counted.get(side, {})).items()
            },
            gpu_busy=statistics.estimate_positive(busy, "ms") if busy else None,
            enqueue_ms=enqueue_ms,
            bound_by="launches" if waits else bound_by,
            candidates=candidates_of(replies) if side == "optimized" else [],
        )

    return msgspec.structs.replace(
        base,
        flops=float(work["flops"]),
        bytes=float(work["bytes"]),
        dtype=work["dtype"],
        roofline_ms=least_ms,
        bound_by=bound_by,
        speedup=speedup,
        baseline=side_summary("baseline"),
        optimized=side_summary("optimized"),
        timing=timing,
    )


def measure(
    job: Job, processes: int, ceilings: Ceilings, say: Callable[[str], object] = lambda _: None
) -> tuple[list[MeasureCase], pl.DataFrame]:
    """Time `job`'s cases in `processes` processes, probe each side's memory, and summarize each case.

    The first process tries every candidate and chooses, as a server would at its start; the others run the chosen one.
    """
    started = time.monotonic()

    def since(before: float) -> str:
        return f"{time.monotonic() - before:.0f} s"

    replies: list[list[CaseReply]] = []
    for number in range(processes):
        began = time.monotonic()
        replies.append(run_process(msgspec.structs.replace(job, seed=job.seed + 1000 * number)))
        told = ""
        if not number:
            job = msgspec.structs.replace(job, served=served_by(replies[0]))
            told = refusals_told(replies[0])
        say(f"timed in process {number + 1} of {processes}: {since(began)}{told}")
    probe = msgspec.structs.replace(
        job,
        mode="probe",
        cases=[case for index, case in enumerate(job.cases) if all(one[index].status == "passed" for one in replies)],
    )

    def probed(side: str) -> dict[str, CaseReply]:
        began = time.monotonic()
        replies = run_process(msgspec.structs.replace(probe, side=side)) if probe.cases else []
        say(f"memory of the {side} side: {since(began)}")
        return {reply.case: reply for reply in replies}

    if job.injected_slowdown_percent:  # such a run says nothing of memory
        probe.cases.clear()
    # Memory is counted, not timed: both sides at once, unless each needs every GPU or times something in its metrics.
    with ThreadPoolExecutor(1 if job.ranks > 1 or pairs.probes_alone(job.pair) else 2) as pool:
        probes = dict(zip(SIDES, pool.map(probed, SIDES), strict=True))
    samples = samples_frame(replies)
    seconds = time.monotonic() - started
    records = []
    for index, case in enumerate(job.cases):
        own = [cases[index] for cases in replies]
        discarded = [f"process {n}, {reason}" for n, reply in enumerate(own) for reason in reply.discard_reasons]
        timing = Timing(
            method=cast(Any, own[0].method),
            processes=processes,
            rounds=job.rounds,
            warmup_rounds=job.warmup_rounds,
            repeats_per_sample=max(reply.repeats for reply in own),
            discarded_rounds=len(discarded),
            discard_reasons=discarded,
            l2_flush_bytes=max(reply.l2_flush_bytes for reply in own),
            threads=job.threads,
            pressure_some_avg10_percent=cpu_pressure_percent(),
            seconds=seconds,
            plan=own[0].plan,
            ranks=job.ranks,
            injected_slowdown_percent=job.injected_slowdown_percent,
        )
        by_side = {side: probes[side][case.case] for side in SIDES if case.case in probes[side]}
        records.append(summarize(case, own[0].work, ceilings, own, by_side, samples, timing, job.device))
    passed = [record.case for record in records if record.status == "passed"]
    return records, samples.filter(pl.col("case").is_in(passed))

"""Measures one pair: starts the processes one after another, puts their samples together, summarizes each case."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from serveproof import pairs
from serveproof.bench import roofline, statistics, worker
from serveproof.bench.job import Case, CaseReply, Job, Reply
from serveproof.hardware.clocks import cpu_pressure_percent
from serveproof.results import SIDES, Ceilings, Estimate, MeasureCase, Metric, SideSummary, Timing
from serveproof.tables import SAMPLES_SCHEMA


def environment(threads: int) -> dict[str, str]:
    """The environment of a measuring process: threads counted and bound to cores, the repository importable."""
    path = os.pathsep.join(filter(None, (str(pairs.ROOT), os.environ.get("PYTHONPATH"))))
    bound = {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    return {**os.environ, **bound, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run_process(job: Job) -> list[CaseReply]:
    """One worker process; a crash becomes status `error` for every case, with the end of what it printed.

    A memory probe runs with glibc's mmap threshold fixed, so that what its rehearsal frees goes back to the kernel.
    """
    with tempfile.TemporaryDirectory(prefix="serveproof-") as folder:
        job_file, reply_file = Path(folder, "job.json"), Path(folder, "reply.json")
        job_file.write_bytes(msgspec.json.encode(job))
        command = [sys.executable, "-m", worker.__name__, str(job_file), str(reply_file)]
        fixed = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if job.mode == "probe" else {}
        done = subprocess.run(
            command, env=environment(job.threads) | fixed, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode == 0:
            return msgspec.json.decode(reply_file.read_bytes(), type=Reply).cases
    tail = "\n".join(done.stderr.splitlines()[-20:])
    reason = f"a measuring process ended with code {done.returncode}: {tail}"
    return [CaseReply(case=case.case, status="error", reason=reason) for case in job.cases]


def samples_frame(replies: list[list[CaseReply]]) -> pl.DataFrame:
    """All samples as one table, columns as SAMPLES_SCHEMA says; `replies` holds one list per process."""
    rows = [
        (reply.case, process, *sample)
        for process, cases in enumerate(replies)
        for reply in cases
        for sample in reply.samples
    ]
    return pl.DataFrame(rows, schema=SAMPLES_SCHEMA, orient="row")


def times_by_process(samples: pl.DataFrame, case: str, side: str) -> list[statistics.Floats]:
    """Per process, this side's times in ms."""
    chosen = samples.filter((pl.col("case") == case) & (pl.col("side") == side))
    return [group["time_ms"].to_numpy() for _, group in chosen.group_by("process", maintain_order=True)]


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

    def side_summary(side: str) -> SideSummary:
        throughput: Estimate | None = None
        if "items" in work:
            throughput = statistics.inverted(times[side], 1e3 * work["items"], f"{work['item']}/s")
        backends = Counter(reply.backends.get(side, "") for reply in replies)
        return SideSummary(
            time=times[side],
            roofline_fraction=fractions[side],
            throughput=throughput,
            peak_memory_bytes=probes[side].peak_memory_bytes,
            backend=" / ".join(name for name, _ in backends.most_common()),
            metrics={
                name: Metric(value=value, unit=unit, note=note)
                for name, (value, unit, note) in probes[side].metrics.items()
            },
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
    job: Job, processes: int, ceilings: Ceilings, progress: Callable[[], object] = lambda: None
) -> tuple[list[MeasureCase], pl.DataFrame]:
    """Time `job`'s cases in `processes` processes, probe each side's memory, and summarize each case."""
    started = time.monotonic()
    pair = pairs.load(job.pair)
    replies = []
    for number in range(processes):
        replies.append(run_process(msgspec.structs.replace(job, seed=job.seed + 1000 * number)))
        progress()
    probes = {}
    for side in SIDES:
        probes[side] = {r.case: r for r in run_process(msgspec.structs.replace(job, mode="probe", side=side))}
        progress()
    samples = samples_frame(replies)
    seconds = time.monotonic() - started
    records = []
    for index, case in enumerate(job.cases):
        own = [cases[index] for cases in replies]
        discarded = [f"process {n}, {reason}" for n, reply in enumerate(own) for reason in reply.discard_reasons]
        timing = Timing(
            method="host_clock" if job.device == "cpu" else "cuda_events",
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
        )
        by_side = {side: probes[side][case.case] for side in SIDES}
        records.append(
            summarize(case, pair.baseline.work(case.axes), ceilings, own, by_side, samples, timing, job.device)
        )
    passed = [record.case for record in records if record.status == "passed"]
    return records, samples.filter(pl.col("case").is_in(passed))

"""One measuring process: reads a Job, runs it alone, writes a Reply. Started by serveproof.bench.measure.

A process of its own per repetition makes memory layout, allocator state and back-end choice part of the spread.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from serveproof import pairs
from serveproof.bench import memory, timing, verification
from serveproof.bench.inputs import Refill
from serveproof.bench.job import Case, CaseReply, Job, Reply
from serveproof.hardware.start import start_torch
from serveproof.results import SIDES


def guarded(case: str, work: Callable[[], CaseReply]) -> CaseReply:
    """Run `work`; an exception is a status of this case and stops no other."""
    try:
        return work()
    except Exception as error:
        status, reason = verification.outcome_of(error)
        return CaseReply(case=case, status=status, reason=reason)


def time_case(pair: pairs.Pair, case: Case, job: Job) -> CaseReply:
    """Build both sides, take turns, check the outputs of the last timed calls."""
    refill = Refill(pair, case.axes, job.device, job.seed)
    runs = {side: verification.build_side(pair, side, refill) for side in SIDES}
    failures: list[str] = []

    def check_last(side: str, output: Any) -> None:
        result = verification.check(output, pair.baseline.reference(refill.live), case.tolerance_eps)
        if result.status != "passed":
            failures.append(f"{side}: the timed calls' output is wrong: {result.reason}")

    taken = timing.take_turns(runs, refill, job.device, job.rounds, job.warmup_rounds, check_last)
    return CaseReply(
        case=case.case,
        status="failed" if failures else "passed",
        reason="; ".join(failures),
        samples=[] if failures else [tuple(asdict(sample).values()) for sample in taken.samples],
        repeats=max(taken.repeats.values()),
        discard_reasons=taken.discard_reasons,
        l2_flush_bytes=taken.l2_flush_bytes,
        backends={side: getattr(run, "backend", "") for side, run in runs.items()},
        plan=getattr(runs["optimized"], "plan", ""),
    )


def probe_case(pair: pairs.Pair, case: Case, job: Job) -> CaseReply:
    """Peak memory and page faults of one side alone: allocate the inputs it reads, build, run twice."""
    module = pair.side(job.side)
    inputs = pairs.restrict(module, pair.baseline.make_inputs(case.axes, job.device, job.seed))
    peak_bytes, faults = memory.peak_of(module, inputs, job.device)
    metrics: dict[str, tuple[float, str, str]] = {}
    if faults is not None:
        note = "minor page faults while this side's inputs are allocated, and it is built and run twice"
        metrics["page_faults"] = (float(faults), "faults", note)
    if hasattr(module, "metrics"):
        metrics.update(module.metrics(inputs))
    return CaseReply(case=case.case, status="passed", peak_memory_bytes=peak_bytes, metrics=metrics)


def work(job: Job) -> Reply:
    """Do the job in this process."""
    start_torch(job.device, job.threads)
    pair = pairs.load(job.pair)
    refusal = pair.optimized.requires(job.device)
    if refusal is not None:
        return Reply(cases=[CaseReply(case=case.case, status="skipped", reason=refusal) for case in job.cases])
    one = time_case if job.mode == "time" else probe_case
    replies = []
    for case in job.cases:
        replies.append(guarded(case.case, partial(one, pair, case, job)))
        if job.device == "cuda":
            torch.cuda.empty_cache()
    return Reply(cases=replies)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies: an orphan would time beside the next job.

    prctl(2), PR_SET_PDEATHSIG = 1.
    """
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def main() -> None:
    """python -m serveproof.bench.worker JOB.json REPLY.json"""
    die_with_parent()
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(work(job)))


if __name__ == "__main__":
    main()

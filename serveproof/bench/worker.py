"""One measuring process: reads a Job, runs it alone, writes a Reply. Started by serveproof.bench.processes.

A process of its own per repetition makes memory layout, allocator state and back-end choice part of the spread.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from serveproof import pairs
from serveproof.bench import candidates, injection, memory, ranks, timing, verification
from serveproof.bench.inputs import Refill
from serveproof.bench.job import Case, CaseReply, Job, Reply
from serveproof.hardware.start import start_torch
from serveproof.orphans import die_with_parent
from serveproof.results import SIDES, SideCheck, VerifyCase

Built = pairs.Run | dict[str, candidates.Maker]


def guarded(case: str, work: Callable[[], CaseReply]) -> CaseReply:
    """Run `work`; an exception is a status of this case and stops no other."""
    try:
        return work()
    except Exception as error:
        status, reason = verification.outcome_of(error)
        return CaseReply(case=case, status=status, reason=reason)


def build_side(pair: pairs.Pair, side: str, refill: Refill) -> Built:
    """One side's closure or candidates on the live inputs, of which it sees only those that it reads."""
    module = pair.side(side)
    built: Built = module.build(pairs.restrict(module, refill.live))
    return built


def verify_case(pair: pairs.Pair, case: Case, job: Job) -> CaseReply:
    """Both sides, every candidate of the optimized one; the case has the status of the first that did not pass."""
    refill = Refill(pair, case.axes, job.device, job.seed)
    makers: dict[str, dict[str, Any]] = {}
    runs: dict[str, Any] = {}
    checks: dict[str, SideCheck] = {}
    for side in SIDES:
        try:
            built = build_side(pair, side, refill)
            if not isinstance(built, dict):
                runs[side] = built
                continue
            makers[side] = built
            found, refused = candidates.made(built)
            if not found:
                raise NotImplementedError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
            runs |= {f"{side}: {name}": run for name, run in found.items()}
            checks |= {f"{side}: {name}": SideCheck("skipped", reason) for name, reason in refused.items()}
        except Exception as error:
            checks[side] = SideCheck(*verification.outcome_of(error))
    tolerances = {name: case.tolerance_of(name.partition(":")[0]) for name in runs}
    free = {name for name in runs if name.startswith("optimized") and getattr(pair.optimized, "NO_HOST_SYNC", False)}
    checks |= verification.verify(runs, tolerances, free, refill, pair)
    sides = {side: checks.get(side) or worst_of(side, checks) for side in SIDES}
    named = {name.partition(": ")[2]: check for name, check in checks.items() if ": " in name}
    broken = next((check for check in sides.values() if check.status != "passed"), None)
    reasons = [f"{name}: {check.reason}" for name, check in sides.items() if check.reason]
    status = broken.status if broken else "passed"
    verified = VerifyCase(case.case, case.tier, case.axes, status, "; ".join(reasons), **sides, candidates=named)
    return CaseReply(case=case.case, status=status, verified=verified)


def worst_of(side: str, checks: dict[str, SideCheck]) -> SideCheck:
    """A side's check from its candidates': the first that failed, else the one with the largest error."""
    own = {name.partition(": ")[2]: one for name, one in checks.items() if name.startswith(f"{side}: ")}
    ran = {name: one for name, one in own.items() if one.status != "skipped"}
    for name, one in ran.items():
        if one.status != "passed":
            return msgspec.structs.replace(one, reason=f"{name}: {one.reason}")
    return max(ran.values(), key=lambda one: one.relative_error or 0.0)


def time_case(pair: pairs.Pair, case: Case, job: Job) -> CaseReply:
    """Build both sides, choose among candidates, take turns, check the outputs of the last timed calls."""
    refill = Refill(pair, case.axes, job.device, job.seed)
    # A candidate's first calls compile: a stopwatch of its own keeps their time out of the rounds' spins.
    watch = timing.Stopwatch(job.device, case.clock, job.ranks)
    chosen = job.served.get(case.case, "")
    choices = {side: candidates.choose(build_side(pair, side, refill), watch, chosen) for side in SIDES}
    runs = {side: choice.run for side, choice in choices.items()}
    plan = getattr(runs["optimized"], "plan", "")
    runs["optimized"] = injection.slowed(runs["optimized"], job.injected_slowdown_percent, watch)
    failures: list[str] = []

    def check_last(side: str, output: Any) -> None:
        result = verification.check(output, pair.baseline.reference(refill.live), case.tolerance_of(side))
        if result.status != "passed":
            failures.append(f"{side}: the timed calls' output is wrong: {result.reason}")

    rounds_watch = timing.Stopwatch(job.device, case.clock, job.ranks)
    taken = timing.take_turns(runs, refill, rounds_watch, job.rounds, job.warmup_rounds, check_last)
    observed: dict[str, dict[str, tuple[float, str, str]]] = {}
    for (side, name), seen in taken.observed.items():
        middle = statistics.median(value for value, _, _ in seen)
        observed.setdefault(side, {})[name] = (middle, *seen[-1][1:])
    return CaseReply(
        case=case.case,
        status="failed" if failures else "passed",
        reason="; ".join(failures),
        samples=[] if failures else [tuple(asdict(sample).values()) for sample in taken.samples],
        busy=[] if failures else [tuple(asdict(sample).values()) for sample in taken.busy],
        repeats=max(taken.repeats.values()),
        discard_reasons=taken.discard_reasons,
        l2_flush_bytes=taken.l2_flush_bytes,
        backends={side: choice.backend for side, choice in choices.items()},
        plan=plan,
        work=pair.baseline.work(case.axes),
        method=taken.method,
        enqueue_ms=taken.enqueue_ms,
        times_ms=choices["optimized"].times_ms,
        refusals=choices["optimized"].refusals,
        observed=observed,
    )


def probe_case(pair: pairs.Pair, case: Case, job: Job) -> CaseReply:
    """Peak memory and page faults of one side alone: allocate the inputs it reads, build what served, run twice."""
    module = pair.side(job.side)
    inputs = pairs.restrict(module, pair.baseline.make_inputs(case.axes, job.device, job.seed))

    def build(own: pairs.Inputs) -> pairs.Run:
        built: Built = module.build(own)
        return built[job.served[case.case]]() if isinstance(built, dict) else built

    probed = memory.peak_of(build, inputs, job.device)
    metrics: dict[str, tuple[float, str, str]] = {}
    if probed.minor_faults is not None and probed.major_faults is not None:
        note = "page faults while this side's inputs are allocated, and it is built and run twice"
        metrics["page_faults"] = (float(probed.minor_faults), "faults", f"minor {note}")
        metrics["major_page_faults"] = (float(probed.major_faults), "faults", f"major {note}: read from disk")
    if hasattr(module, "metrics"):
        metrics.update(module.metrics(inputs))
    return CaseReply(case=case.case, status="passed", peak_memory_bytes=probed.peak_bytes, metrics=metrics)


MODES: dict[str, Callable[[pairs.Pair, Case, Job], CaseReply]] = {
    "verify": verify_case,
    "time": time_case,
    "probe": probe_case,
}


def work(job: Job) -> Reply:
    """Do the job in this process."""
    start_torch(job.device, job.threads)
    pair = pairs.load(job.pair)
    refusal = pair.optimized.requires(job.device)
    if refusal is not None:
        return Reply(cases=[CaseReply(case=case.case, status="skipped", reason=refusal) for case in job.cases])
    replies = []
    with ranks.joined(job):
        for case in job.cases:
            replies.append(guarded(case.case, partial(MODES[job.mode], pair, case, job)))
            if job.device == "cuda":
                torch.cuda.empty_cache()
    return Reply(cases=replies)


def main() -> None:
    """python -m serveproof.bench.worker JOB.json REPLY.json"""
    die_with_parent()
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(work(job)))


if __name__ == "__main__":
    main()

"""One profiling process: reads a ProfileJob, profiles its cases alone, writes a ProfileReply. It measures no time that
a verdict uses; started by serveproof.bench.profiling.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from serveproof import pairs
from serveproof.bench import profiling_minimal, ranks, verification
from serveproof.bench.candidates import choose
from serveproof.bench.inputs import Refill
from serveproof.bench.job import Case
from serveproof.bench.profiling_job import ProfileJob, ProfileReply
from serveproof.bench.timing import Stopwatch
from serveproof.bench.worker import Built, build_side
from serveproof.hardware.start import start_torch
from serveproof.orphans import die_with_parent
from serveproof.profile_records import Profile
from serveproof.results import SIDES


def closure(built: Built, case: Case, job: Any) -> tuple[pairs.Run, str]:
    """(what is profiled, its back end): of candidates the one that served the measurement, or else the fastest here."""
    served = job.served.get(case.case, "")
    if isinstance(built, dict) and served in built:
        return built[served](), served
    chosen = choose(built, Stopwatch(job.device, case.clock, job.ranks))
    return chosen.run, chosen.backend


def profile_side(pair: pairs.Pair, case: Case, side: str, job: ProfileJob) -> Profile:
    """One side's profile; an exception is its status and stops no other."""
    try:
        refill = Refill(pair, case.axes, job.device, job.seed, sets=0)
        run, backend = closure(build_side(pair, side, refill), case, job)
        keeps = bool(job.traces) and os.environ.get("RANK", "0") == "0"
        out = Path(job.traces) / f"{case.case}_{side}.json.gz" if keeps else None
        found = profiling_minimal.profile(run, job.device, job.ceilings, out, job.trace_bytes)
        found.backend = backend
        return found
    except Exception as error:
        status, reason = verification.outcome_of(error)
        return Profile(status=status, reason=reason)
    finally:
        if job.device == "cuda":
            torch.cuda.empty_cache()


def work(job: ProfileJob) -> ProfileReply:
    """Do the job in this process."""
    start_torch(job.device, job.threads)
    pair = pairs.load(job.pair)
    refusal = pair.optimized.requires(job.device)
    with ranks.joined(job):
        cases = {}
        for case in job.cases:
            sides = [job.side] if job.side else list(SIDES)
            skipped = {side: Profile(status="skipped", reason=refusal or "") for side in sides}
            cases[case.case] = (
                skipped if refusal is not None else {side: profile_side(pair, case, side, job) for side in sides}
            )
    return ProfileReply(cases)


def main() -> None:
    """python -m serveproof.bench.profiling_worker JOB.json REPLY.json"""
    die_with_parent()
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ProfileJob)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(work(job)))


if __name__ == "__main__":
    main()

"""The client's processes: each drives its share of the requests from one common start; their outcomes come back as one
list, in the order of the intended arrivals."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serveproof.errors import UserError
from serveproof.load_test.outcomes import ClientJob, ClientReport, Outcome, Planned

LEAD_S = 0.3
NS = 1_000_000_000


@dataclass(frozen=True)
class Driven:
    """What all client processes found. cpu_share: of one core, of the busiest process."""

    start_ns: int
    planned: dict[int, Planned]
    outcomes: list[Outcome]
    loop_lag_ms: list[float]
    cpu_share: float


def shares(job: ClientJob, processes: int) -> list[ClientJob]:
    """The job dealt out like cards, so that each process has the same mix; a closed loop's users are dealt out too."""
    dealt = []
    for number in range(processes):
        users = None
        if job.concurrency is not None:
            users = job.concurrency // processes + (number < job.concurrency % processes)
            if not users:
                continue
        requests = job.requests[number::processes]
        dealt.append(msgspec.structs.replace(job, requests=requests, concurrency=users))
    return dealt


def drive(job: ClientJob, processes: int = 1, started: Callable[[int], object] = lambda _: None) -> Driven:
    """Run the job from so many processes; `started` is told the common start in ns when it is set.

    RuntimeError with a process's own words when it fails.
    """
    if processes < 1:
        raise UserError(f"client processes: {processes}; at least 1")
    if not job.requests:
        raise UserError("no request to send: a higher rate, or a longer duration")
    running: list[tuple[subprocess.Popen[str], Path]] = []
    with tempfile.TemporaryDirectory(prefix="serveproof-load-") as folder:
        try:
            for number, share in enumerate(shares(job, processes)):
                asked, answered = Path(folder, f"{number}.job"), Path(folder, f"{number}.report")
                asked.write_bytes(msgspec.msgpack.encode(share))
                command = [sys.executable, "-m", "serveproof.load_test.client", str(asked), str(answered)]
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
                running.append((process, answered))
            for process, _ in running:
                assert process.stdout  # noqa: S101 - asked for above
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"a client process did not start: {process.communicate()[1]}")
            start_ns = time.monotonic_ns() + round(LEAD_S * NS)
            started(start_ns)
            for process, _ in running:
                assert process.stdin  # noqa: S101 - asked for above
                process.stdin.write(f"{start_ns}\n")
                process.stdin.flush()
            reports = []
            for process, answered in running:
                _, errors = process.communicate()
                if process.returncode:
                    raise RuntimeError(f"a client process failed with code {process.returncode}: {errors}")
                reports.append(msgspec.msgpack.decode(answered.read_bytes(), type=ClientReport))
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    return Driven(
        start_ns=start_ns,
        planned={one.number: one for one in job.requests},
        outcomes=sorted((one for report in reports for one in report.outcomes), key=lambda one: one.intended_ns),
        loop_lag_ms=[lag for report in reports for lag in report.loop_lag_ms],
        cpu_share=max(report.cpu_s / report.seconds for report in reports),
    )

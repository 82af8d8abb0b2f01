"""What each job was given and what it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serveproof.cluster.usage import JobUsage
from serveproof.report import numbers
from serveproof.results import Placement

ALONE = {"node": "its node", "gpu": "its GPUs", "none": "nothing", "unknown": "not told"}


@dataclass(frozen=True)
class JobRow:
    """One job in words. Shares are of what was given, in percent; '–' where nothing was asked for."""

    name: str
    where: str
    alone: str
    gpus: str
    cpus: str
    cpu_share: str
    memory: str
    memory_share: str
    time: str
    time_share: str


def job_rows(jobs: Sequence[JobUsage]) -> list[JobRow]:
    """The jobs of one machine's folder, by name."""
    return [_row(one) for one in jobs]


def _share(used: float, given: float | None) -> str:
    return f"{100 * used / given:.0f} %" if given else "–"


def _row(one: JobUsage) -> JobRow:
    given = one.placement
    cores = one.cpu_seconds / one.seconds if one.seconds else 0.0
    limit_s = 60 * given.limit_minutes if given and given.limit_minutes else None
    memory = given.memory_bytes if given else None
    of_cpus = f" of {given.cpus}" if given else ""
    of_memory = f" of {numbers.figure(memory, 'bytes')}" if memory else ""
    of_time = f" of {given.limit_minutes} min" if given and limit_s else ""
    return JobRow(
        name=one.job,
        where=f"{given.partition}, {given.node}, job {given.job_id}" if given else "not through SLURM",
        alone=ALONE[given.alone] if given else "–",
        gpus=str(given.gpus) if given else "–",
        cpus=f"{cores:.1f}{of_cpus}",
        cpu_share=_share(cores, given.cpus if given else None),
        memory=f"{numbers.figure(one.peak_bytes, 'bytes')}{of_memory}",
        memory_share=_share(one.peak_bytes, memory),
        time=f"{numbers.figure(one.seconds, 's')}{of_time}",
        time_share=_share(one.seconds, limit_s),
    )


def placed(placement: Placement | None) -> str:
    """Where a record was made, and what it had to itself there."""
    if placement is None:
        return "not through SLURM; no other serveproof job beside it"
    cpus = f"{placement.cpus} CPUs" + (f", {placement.gpus} GPUs" if placement.gpus else "")
    return (
        f"SLURM job {placement.job_id}, partition {placement.partition}, node {placement.node}, {cpus}; "
        f"to itself: {ALONE[placement.alone]}"
    )

"""What each job was given and what it used, and the cases of several machines beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serveproof.cluster.usage import JobUsage
from serveproof.report import numbers
from serveproof.report.summary import CaseRow
from serveproof.results import Estimate, Placement

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


@dataclass(frozen=True)
class BesideRow:
    """One case on every machine, in the machines' order: its speedup, or why there is none."""

    pair: str
    case: str
    cells: list[Estimate | str]


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


def beside(rows: Sequence[Sequence[CaseRow]]) -> list[BesideRow]:
    """Every case that any of the machines has. rows: those of each machine."""
    by_machine = [{(row.pair, row.case): row for row in some} for some in rows]
    names = dict.fromkeys(name for some in by_machine for name in some)

    def cell(row: CaseRow | None) -> Estimate | str:
        if row is None:
            return "not a case there"
        return row.measured.speedup if row.measured and row.measured.speedup else row.status

    return [BesideRow(*name, [cell(some.get(name)) for some in by_machine]) for name in sorted(names)]

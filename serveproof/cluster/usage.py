"""What a job used and what it was given: noted by every script beside its log, read by the next run and the report.

getrusage(2), once, at the end: Snakemake's `benchmark:` walks the memory maps of every process of the job twice a
second, and a timed process must not have that beside it.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

from serveproof.cluster.parse import fields_of, megabytes_of, minutes_of
from serveproof.errors import UserError
from serveproof.results import Placement, Record, read, write

SUFFIX = ".usage.json"


class JobUsage(Record):
    """{log}.usage.json: one script's run. peak_bytes: its own peak and the largest of its processes', added.

    cpu_seconds: of it and of all processes that it waited for. placement: None where SLURM did not run it.
    """

    job: str
    script: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    placement: Placement | None = None


def placement() -> Placement | None:
    """What SLURM gave the job that this process is in; None outside of SLURM."""
    job_id = os.environ.get("SLURM_JOB_ID", "")
    if not job_id:
        return None
    try:
        told = subprocess.run(
            ["scontrol", "show", "job", "-o", job_id], capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        told = ""
    return placed(job_id, fields_of(told), os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def placed(job_id: str, told: dict[str, str], visible: str) -> Placement:
    """One job as `scontrol show job` tells it. visible: CUDA_VISIBLE_DEVICES, which SLURM sets in a job with GPUs."""
    gpus = len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"])
    asked = " ".join(told.get(name, "") for name in ("TresPerNode", "TresPerJob"))
    shared = {"NO": "node", "EXCLUSIVE": "node"}.get(told.get("OverSubscribe", ""), "")
    held = "gpu" if gpus and "gpu" in asked else "none"
    memory = megabytes_of(found[1]) if (found := re.search(r"\bmem=([^,]+)", told.get("TRES", ""))) else None
    return Placement(
        job_id=job_id,
        node=told.get("BatchHost") or os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        partition=told.get("Partition", ""),
        cpus=int(told.get("NumCPUs") or len(os.sched_getaffinity(0))),
        gpus=gpus if "gpu" in asked else 0,
        memory_bytes=None if memory is None else memory << 20,
        limit_minutes=minutes_of(told.get("TimeLimit", "")),
        alone=(shared or held) if told else "unknown",  # type: ignore[arg-type]
    )


def note(log: Path, seconds: float) -> None:
    """Write the usage of this process, which has done its work, beside `log`. Of several ranks rank 0 speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = JobUsage(
        job=log.stem,
        script=Path(sys.argv[0]).stem,
        seconds=seconds,
        cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        peak_bytes=(own.ru_maxrss + children.ru_maxrss) << 10,
        placement=placement(),
    )
    write(log.with_name(log.stem + SUFFIX), used)


def usages(folder: Path) -> list[JobUsage]:
    """Every usage noted in a folder of logs, by name; one that can't be read is left out, for no figure needs it."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            found.append(read(path, JobUsage))
        except UserError:
            continue
    return found

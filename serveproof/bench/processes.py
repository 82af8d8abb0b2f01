"""Measuring processes: a job in a process of its own, or in one a rank, and what it answered."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from serveproof import pairs
from serveproof.bench.job import CaseReply, Job, Reply

if TYPE_CHECKING:  # a change of the worker is a change of what is measured; importing it would import torch here
    from serveproof.bench import worker  # noqa: F401

WORKER = "serveproof.bench.worker"
LIMIT_S = 1800.0
BINDING = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}


def environment(job: Job) -> dict[str, str]:
    """The environment of a measuring process: threads counted, the repository importable.

    One process alone that is timed on a CPU has each thread bound to a core. Nothing else has: OpenMP binds the thread
    that calls it, and so all that this one starts, to the machine's first core. The launching threads of every process
    and rank would share that core, and compilers, which start as many workers as they may use cores, would have one.

    NVLink multicast stays off unless the user says otherwise: a program that uses it can disturb others' GPUs.
    """
    path = os.pathsep.join(filter(None, (str(pairs.ROOT), os.environ.get("PYTHONPATH"))))
    inherited = {name: value for name, value in os.environ.items() if name not in BINDING}
    bound = BINDING if job.device == "cpu" and job.ranks == 1 and job.mode == "time" else {}
    quiet = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    ours = {"OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return {**quiet, **inherited, **bound, **ours}


def run_process(job: Job) -> list[CaseReply]:
    """One job in a process of its own, or in one a rank; the reply is rank 0's.

    A crash becomes status `error` for every case, with the end of what it printed; so does a rank that doesn't answer.
    """
    answer, failure = answered(job, WORKER, LIMIT_S)
    if failure:
        reason = f"a measuring process ended with {failure}"
        return [CaseReply(case=case.case, status="error", reason=reason) for case in job.cases]
    return msgspec.json.decode(answer, type=Reply).cases


def answered(job: Job, worker: str, limit_s: float, prefix: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """(what rank 0 of `worker` wrote, '') or (b'', how the first process failed, and the end of what it printed).

    A memory probe runs with glibc's mmap threshold fixed, so that what its rehearsal frees goes back to the kernel.
    prefix: a program that starts each process, such as a profiler.
    """
    with tempfile.TemporaryDirectory(prefix="serveproof-") as folder:
        job_file = Path(folder, "job.json")
        job_file.write_bytes(msgspec.json.encode(job))
        fixed = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if job.mode == "probe" else {}
        store = {"SERVEPROOF_STORE": str(Path(folder, "store"))}
        started = []
        for rank in range(job.ranks):
            command = [*prefix, sys.executable, "-m", worker, str(job_file), str(Path(folder, f"reply{rank}.json"))]
            variables = environment(job) | fixed | store | {"RANK": str(rank)}
            printed = Path(folder, f"stderr{rank}").open("w+", errors="replace")  # noqa: SIM115
            started.append((subprocess.Popen(command, env=variables, stdout=printed, stderr=printed), printed))
        failures = [found for process in started if (found := _failure(*process, limit_s))]
        return (b"", failures[0]) if failures else (Path(folder, "reply0.json").read_bytes(), "")


def _failure(process: subprocess.Popen[bytes], printed: IO[str], limit_s: float) -> str:
    """Wait for one process; its exit code and the end of what it printed when it failed, else ''."""
    with printed:
        try:
            code = str(process.wait(limit_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"no answer after {limit_s:.0f} s"
        printed.seek(0)
        tail = "\n".join(printed.read().splitlines()[-20:])
    return "" if code == "0" else f"code {code}: {tail}"

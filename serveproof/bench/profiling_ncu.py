"""One side of one case under Nsight Compute, by nsight-python: python -m serveproof.bench.profiling_ncu JOB REPLY.

nsight-python starts this program again under ncu, so it runs twice: outside, where it waits and reads the report, and
inside, where the side is built and called once in the range that ncu replays kernel by kernel.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec

from serveproof.bench.profiling_job import CounterJob, CounterReply, RawKernel
from serveproof.orphans import die_with_parent, end_with

INSIDE, OUTSIDE_PID = "NSPY_NCU_PROFILE", "SERVEPROOF_NCU_OUTSIDE"
RANGE = "serveproof"


class Enough(Exception):
    """As many operations ran as are to be counted."""


def call_once(job: CounterJob) -> None:
    """Build the side as a profile does, warm it up, and call it once in nsight's range."""
    import nsight
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from serveproof import pairs
    from serveproof.bench.inputs import Refill
    from serveproof.bench.profiling_worker import closure
    from serveproof.bench.worker import build_side
    from serveproof.hardware.start import start_torch

    class Limit(TorchDispatchMode):
        left = job.most_operations

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Enough
            return func(*args, **(kwargs or {}))

    start_torch(job.device, job.threads)
    pair, case = pairs.load(job.pair), job.cases[0]
    refill = Refill(pair, case.axes, job.device, job.seed, sets=0)
    run, _ = closure(build_side(pair, job.side, refill), case, job)

    def wait() -> None:
        if job.device == "cuda":
            torch.cuda.synchronize()

    run()
    wait()
    with nsight.annotate(RANGE):
        if job.most_operations:
            try:
                with Limit():  # type: ignore[no-untyped-call]
                    run()
            except Enough:
                pass
        else:
            run()
        wait()


def collect(job: CounterJob) -> CounterReply:
    """Both halves: inside ncu this never returns; outside it is the launches, or why there are none."""
    if importlib.util.find_spec("nsight") is None:
        return CounterReply(reason="nsight-python is not installed (envs/gpu.txt has it): no hardware counters")
    import nsight

    with tempfile.TemporaryDirectory(prefix="serveproof-ncu-") as folder:
        prefix = f"{folder}/"

        @nsight.analyze.kernel(  # type: ignore[untyped-decorator]
            metrics=job.metrics,
            runs=1,
            configs=[(0,)],
            combine_kernel_metrics=lambda left, right: left + right,  # nsight's own sum; each launch is read below
            clock_control="none",
            cache_control="all",
            thermal_mode="off",
            output="quiet",
            output_prefix=prefix,
        )
        def one_call(_: int) -> None:
            call_once(job)

        problem = ""
        try:
            one_call()
        except Exception as error:  # nsight-python's own summary is stricter than what is read below
            problem = str(error)
        reports = list(Path(folder).glob("*.ncu-rep"))
        kernels = read_report(reports[0], job.metrics) if reports else []
        if kernels:
            return CounterReply(kernels)
        from serveproof.bench.profiling_counters import reason_of

        logs = "\n".join(file.read_text(errors="replace") for file in Path(folder).glob("*.log"))
        return CounterReply(reason=f"Nsight Compute: {reason_of(logs or problem)}")


def read_report(file: Path, metrics: list[str]) -> list[RawKernel]:
    """Every launch in a report of Nsight Compute, in order; a metric that a launch lacks is left out."""
    import ncu_report

    report = ncu_report.load_report(str(file))
    found = []
    for number in range(report.num_ranges()):
        launches = report.range_by_idx(number)
        for index in range(launches.num_actions()):
            action = launches.action_by_idx(index)
            there = set(action.metric_names())
            values = {name: action[name].value() for name in metrics if name in there}
            found.append(RawKernel(action.name(), {name: float(v) for name, v in values.items() if v is not None}))
    return found


def main() -> None:
    """Read the job, count, write the reply. Past the job's limit the whole group ends, ncu among it."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=CounterJob)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if INSIDE in os.environ:
        threading.Thread(target=end_with, args=(int(os.environ[OUTSIDE_PID]),), daemon=True).start()
    else:
        die_with_parent()
        os.setpgrp()
        os.environ[OUTSIDE_PID] = str(os.getpid())
        # nsight-python starts this file by its path: its folder must not come before Python's own modules
        os.environ["PYTHONSAFEPATH"] = "1"
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
        signal.alarm(job.limit_s)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(collect(job)))


if __name__ == "__main__":
    main()

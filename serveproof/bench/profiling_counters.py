"""Hardware counters: which to ask Nsight Compute for, and what they say of a kernel against the measured roofline.

Names are NVIDIA's (Nsight Compute documentation, "Metrics Structure"); what a GPU lacks is left out and said.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable

from serveproof.bench.profiling_counts import Work
from serveproof.bench.profiling_hotspots import least_ms
from serveproof.bench.profiling_job import RawKernel
from serveproof.bench.profiling_trace import clean
from serveproof.profile_records import MOST_KERNELS, Counters
from serveproof.results import Ceilings

TIME = "gpu__time_duration.sum"
DRAM_BYTES, DRAM_SHARE = "dram__bytes.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed"
L2_BYTES, L2_SHARE = "lts__t_bytes.sum", "lts__throughput.avg.pct_of_peak_sustained_elapsed"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
# The tensor pipe's activity: the first of these that the GPU has.
TENSOR_SHARES = (
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
)
# Floating-point operations outside the tensor cores, by thread; a fused multiply-add is two, half precision packs two.
_SCALAR = {"fadd": 1, "fmul": 1, "ffma": 2, "dadd": 1, "dmul": 1, "dfma": 2, "hadd": 2, "hmul": 2, "hfma": 4}
SCALAR = {f"sm__sass_thread_inst_executed_op_{name}_pred_on.sum": flops for name, flops in _SCALAR.items()}
# Operations of the tensor cores by operand types: every such counter that the GPU has, sparse ones not among them.
TENSOR_OPS = re.compile(r"^sm__ops_path_tensor_src_(?!.*sparsity)(?:bf16|fp16|fp8|fp4|fp6|tf32|fp64)\w*$")
ALWAYS = (TIME, DRAM_BYTES, DRAM_SHARE, L2_BYTES, L2_SHARE, OCCUPANCY)
QUERY_LIMIT_S = 120
PERMISSION = "ERR_NVGPUCTRPERM"


def known_metrics() -> tuple[set[str], str]:
    """(base names of every counter of this GPU, '') from `ncu --query-metrics`, or (nothing, why not)."""
    if shutil.which("ncu") is None:
        return set(), "Nsight Compute (ncu) is not installed: no hardware counters"
    try:
        command = ["ncu", "--query-metrics"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return set(), f"ncu --query-metrics: {error}"
    names = set(re.findall(r"^(\w+__\w+)\s", done.stdout, re.M))
    return names, "" if names else f"ncu --query-metrics: {reason_of(done.stdout + done.stderr)}"


def wanted(known: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the metrics to ask for, those that this GPU doesn't have)."""
    known = set(known)
    tensor = next(([name] for name in TENSOR_SHARES if name.partition(".")[0] in known), [])
    operations = sorted(f"{name}.sum" for name in known if TENSOR_OPS.match(name))
    names = [*ALWAYS, *tensor, *SCALAR, *operations]
    missing = [name for name in names if name.partition(".")[0] not in known]
    missing += [] if tensor else [TENSOR_SHARES[0]]
    return [name for name in names if name not in missing], missing


def reason_of(printed: str) -> str:
    """What went wrong, in one line, from what Nsight Compute printed or logged."""
    errors = re.findall(r"^==ERROR==\s+(.*)$", printed, re.M)
    if any(PERMISSION in one for one in errors) or PERMISSION in printed:
        return (
            f"no permission to read the GPU's counters ({PERMISSION}): run as root, or load the driver with "
            f"NVreg_RestrictProfilingToAdminUsers=0"
        )
    lines = errors or [line for line in printed.splitlines() if line.strip()] or ["it said nothing"]
    return str(lines[0]).strip()[:300]


def counters(kernels: list[RawKernel], ceilings: Ceilings, dtype: str) -> tuple[list[Counters], int]:
    """(one row a kernel's name, longest first; how many names were left out). Shares are weighted by time.

    dtype: of the pair's work: the matrix rate that counted FLOPs are held against.
    """
    launches: dict[str, list[RawKernel]] = defaultdict(list)
    for kernel in kernels:
        launches[clean(kernel.name)].append(kernel)
    rows = [_row(name, mine, ceilings, dtype) for name, mine in launches.items()]
    rows.sort(key=lambda row: -row.time_ms)
    return rows[:MOST_KERNELS], max(0, len(rows) - MOST_KERNELS)


def _row(name: str, launches: list[RawKernel], ceilings: Ceilings, dtype: str) -> Counters:
    times_ns = [one.metrics.get(TIME, 0.0) for one in launches]
    whole_ns = sum(times_ns)
    keys = dict.fromkeys(key for one in launches for key in one.metrics)
    summed: dict[str, float] = {}
    for key in keys:
        values = [one.metrics.get(key, 0.0) for one in launches]
        if ".pct_of_peak" in key:
            weighted = sum(value * took for value, took in zip(values, times_ns, strict=True))
            summed[key] = weighted / whole_ns if whole_ns else 0.0
        else:
            summed[key] = sum(values)
    seconds = whole_ns / 1e9
    flops = _flops(summed)
    dram = summed.get(DRAM_BYTES)
    fraction, bound_by = None, "unknown"
    if dram is not None and seconds:
        least, bound_by = least_ms(Work(flops or 0.0, dram, dtype), ceilings)
        fraction = least / (1e3 * seconds)
    return Counters(
        kernel=name,
        launches=len(launches),
        time_ms=1e3 * seconds,
        dram_bytes=dram,
        dram_bytes_per_s=dram / seconds if dram is not None and seconds else None,
        dram_share=_share(summed, DRAM_SHARE),
        l2_bytes_per_s=summed[L2_BYTES] / seconds if L2_BYTES in summed and seconds else None,
        l2_share=_share(summed, L2_SHARE),
        tensor_share=next((_share(summed, one) for one in TENSOR_SHARES if one in summed), None),
        occupancy=_share(summed, OCCUPANCY),
        flops=flops,
        fraction=fraction,
        bound_by=bound_by,  # type: ignore[arg-type]
        metrics=summed,
    )


def _share(summed: dict[str, float], name: str) -> float | None:
    return summed[name] / 100 if name in summed else None


def _flops(summed: dict[str, float]) -> float | None:
    """Counted floating-point operations; None where no counter of them was read."""
    scalar = {name: flops for name, flops in SCALAR.items() if name in summed}
    tensor = [name for name in summed if TENSOR_OPS.match(name.removesuffix(".sum"))]
    if not scalar and not tensor:
        return None
    return sum(summed[name] * flops for name, flops in scalar.items()) + sum(summed[name] for name in tensor)

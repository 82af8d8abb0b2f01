"""Every record that serveproof writes or reads: typed, strict, units in the names.

Records are JSON files; reading one validates it, writing one is atomic (a temporary file in the same folder, then a
rename), so a killed run leaves either the whole file or none. Imports neither torch nor polars: the Snakefile,
compare.py and the command line read records too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from serveproof.errors import UserError

Status = Literal["passed", "failed", "skipped", "error", "out_of_memory"]
SIDES = ("baseline", "optimized")
VerdictName = Literal["met", "regressed", "too_good", "inconclusive", "skipped", "expired", "absent", "failed"]


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """Base of every record: typed fields, an unknown one is an error."""


class Estimate(Record):
    """A figure with its confidence interval. `low <= value <= high`, all in `unit`."""

    value: float
    low: float
    high: float
    unit: str
    confidence: float = 0.95


class Metric(Record):
    """A counted or computed figure without an interval (bytes reserved, page faults)."""

    value: float
    unit: str
    note: str = ""


class Provenance(Record):
    """Where a figure comes from: what code, what packages, what command, when."""

    commit: str
    dirty: bool
    lock_file: str
    lock_sha256: str
    versions: dict[str, str]
    driver: str
    command: str
    date_utc: str


class Placement(Record):
    """Where SLURM ran a job, as SLURM itself says. alone: what it had to itself: its node, its GPUs, or nothing."""

    job_id: str
    node: str
    partition: str
    cpus: int
    gpus: int
    memory_bytes: int | None
    limit_minutes: int | None
    alone: Literal["node", "gpu", "none", "unknown"]


# --- hardware ---------------------------------------------------------------------------------------------------


class DeviceState(Record):
    """Clocks and throttle reasons of one device at one moment; None where the device does not tell."""

    index: int
    name: str
    memory_bytes: int
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttle_reasons: list[str] = msgspec.field(default_factory=list)


class Ceilings(Record):
    """What this machine was measured to do at best; every roofline fraction divides by these."""

    copy_bandwidth_bytes_per_s: float
    read_bandwidth_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]
    how: str


class HardwareRecord(Record):
    """results/{hardware}/hardware.json"""

    key: str
    device: Literal["cpu", "cuda"]
    name: str
    count: int
    states: list[DeviceState]
    driver: str
    cuda: str
    torch: str
    python: str
    cpu_model: str
    cpu_count: int
    host_memory_bytes: int
    cpu_clock_mhz: float | None
    pressure_some_avg10_percent: float | None
    ceilings: Ceilings
    date_utc: str
    placement: Placement | None = None


# --- pairs ------------------------------------------------------------------------------------------------------


class SideCheck(Record):
    """One side's output against the reference, and whether the check rejects what it must reject.

    relative_error: ||out - ref|| / ||ref||. element_error: max |out - ref| / (|ref| + rms of its row).
    must_fail: corruption name (zeros, negated, stale, shuffled) -> True when the check rejected it.
    """

    status: Status
    reason: str = ""
    relative_error: float | None = None
    relative_bound: float | None = None
    element_error: float | None = None
    element_bound: float | None = None
    must_fail: dict[str, bool] = msgspec.field(default_factory=dict)


class VerifyCase(Record):
    """One case (one set of axes) of a pair, both sides checked.

    candidates: of an optimized side with several back ends, each one's check; `optimized` is then the worst of them.
    """

    case: str
    tier: str
    axes: dict[str, Any]
    status: Status
    reason: str
    baseline: SideCheck
    optimized: SideCheck
    candidates: dict[str, SideCheck] = msgspec.field(default_factory=dict)


class VerifyRecord(Record):
    """results/{hardware}/pairs/{pair}/verify.json"""

    pair: str
    hardware: str
    code_sha: str
    cases: list[VerifyCase]


class Candidate(Record):
    """One back end that could have served: its time when the harness chose, or why it refused.

    time_ms: the median of the calls that chose; None for one that refused. served: in how many processes it served.
    """

    name: str
    time_ms: float | None
    served: int
    reason: str = ""


class SideSummary(Record):
    """One side of a passed measurement.

    roofline_fraction: roofline time / measured time, from the measured ceilings.
    gpu_busy: how long the GPU works in a call, by CUPTI; only where `time` is the host's clock.
    enqueue_ms: how long the host needs to hand one call to the GPU; None on a CPU.
    bound_by: what binds this side: the ceiling that the roofline says, or `launches` when the host takes as long to
    enqueue a call as the device to run it.
    peak_memory_bytes: the inputs this side reads plus what it allocates, from a process of its own.
    """

    time: Estimate
    roofline_fraction: Estimate
    throughput: Estimate | None
    peak_memory_bytes: int
    backend: str
    metrics: dict[str, Metric] = msgspec.field(default_factory=dict)
    gpu_busy: Estimate | None = None
    enqueue_ms: float | None = None
    bound_by: Literal["", "bytes", "flops", "launches"] = ""
    candidates: list[Candidate] = msgspec.field(default_factory=list)


class Timing(Record):
    """How the times were taken. injected_slowdown_percent: time added to the optimized side on purpose."""

    method: Literal["host_clock", "cuda_events", "cupti"]
    processes: int
    rounds: int
    warmup_rounds: int
    repeats_per_sample: int
    discarded_rounds: int
    discard_reasons: list[str]
    l2_flush_bytes: int
    threads: int
    pressure_some_avg10_percent: float | None
    seconds: float
    plan: str = ""
    ranks: int = 1
    injected_slowdown_percent: float = 0.0


class MeasureCase(Record):
    """One case measured. Times exist only when status is `passed`; otherwise `reason` says why not."""

    case: str
    tier: str
    axes: dict[str, Any]
    status: Status
    reason: str
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = ""
    roofline_ms: float | None = None
    bound_by: Literal["", "bytes", "flops"] = ""
    speedup: Estimate | None = None
    baseline: SideSummary | None = None
    optimized: SideSummary | None = None
    timing: Timing | None = None


class MeasureRecord(Record):
    """results/{hardware}/pairs/{pair}/measure.json; its samples lie beside it in samples.parquet.

    samples.parquet columns: case str, process i64, round i64, side str, order i64, time_ms f64, gpu_busy_ms f64.
    """

    pair: str
    hardware: str
    machine: str
    code_sha: str
    summary: str
    cases: list[MeasureCase]
    provenance: Provenance
    placement: Placement | None = None


# --- accuracy ---------------------------------------------------------------------------------------------------


class ModelRecord(Record):
    """What prepare_model wrote beside the safetensors: results/inputs/model/model.json."""

    name: str
    source: str
    source_sha256: str
    license: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    stored_as: str
    note: str


class TextRecord(Record):
    """What prepare_text wrote beside text.txt: results/inputs/text.json."""

    name: str
    source: str
    sha256: str
    license: str
    characters: int
    articles: int
    note: str


# --- judging ----------------------------------------------------------------------------------------------------


class Verdict(Record):
    """One figure held against one expectation (or gate). subject: pair/case, perplexity/precision, served/path, or
    what uses a precision. failed_gate: the accuracy gate that took this figure's verdict away.
    """

    subject: str
    metric: str
    verdict: VerdictName
    reason: str
    unit: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    source: str = ""
    failed_gate: str = ""


class Judgement(Record):
    """results/{hardware}/judgement.json. gate_bounds: by precision or path, where it is not max_increase_percent."""

    hardware: str
    expectations_file: str
    max_increase_percent: float
    verdicts: list[Verdict]
    gate_bounds: dict[str, float] = msgspec.field(default_factory=dict)


# --- reading and writing ----------------------------------------------------------------------------------------

R = TypeVar("R", bound=Record)


def read(path: Path | str, kind: type[R]) -> R:
    """Read and validate one record. A missing, cut-short or foreign file is a UserError naming file and mend."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `snakemake --cores all` to make it") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a whole {kind.__name__} ({error}); delete it and run `snakemake --cores all` again"
        ) from None


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename onto path: the file is whole or absent, whatever kills the process."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode(record: Record) -> bytes:
    """The record as indented JSON, one trailing newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def write(path: Path | str, record: Record) -> None:
    """Write one record atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(encode(record)))

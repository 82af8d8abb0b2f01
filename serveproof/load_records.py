"""Records of load tests: what scripts/inference_server_load_test.py and load_sweep.py measured, and what judges it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from serveproof.results import Estimate, Provenance, Record


class Slo(Record):
    """What a request must keep to be good."""

    ttft_ms: float
    tpot_ms: float


# MLPerf Inference's limits for Llama 3.1 8B, its small LLM: p99 of TTFT and of TPOT in the Server and the Interactive
# scenario (MLCommons, "Introducing a small LLM benchmark to MLPerf Inference v5.1", September 2025).
SLOS = {"server": Slo(2000.0, 100.0), "interactive": Slo(500.0, 30.0)}


class Trend(Record):
    """One series of a run after its warm-up. change: from end to end, as a share of its mean."""

    name: str
    kendall_tau: float
    p_value: float
    change: float
    steady: bool


class Steadiness(Record):
    """Whether a run was steady, and what was cut off before."""

    verdict: Literal["steady", "not_steady", "too_short"]
    reason: str
    warmup_s: float
    warmup_requests: int
    trends: list[Trend]


class Quantiles(Record):
    """A latency over the answered requests of the window, in ms; an interval where there are enough of them."""

    count: int
    mean: float
    p50: Estimate
    p90: Estimate
    p99: Estimate
    largest: float


class TenantFigures(Record):
    """One tenant in the window. service: 1 a prompt token, 2 an output token; asked is of its requests there."""

    tenant: str
    requests: int
    ok: int
    good: int
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    output_tokens_per_s: float
    service_asked: float
    service_got: float


class Fairness(Record):
    """Over tenants: Jain's index of service over its fair share, and the largest service gap."""

    jain: float
    largest_service_gap: float


class Energy(Record):
    """Of all GPUs of this machine over the window; reason says why there is none."""

    joules: float | None
    joules_per_output_token: float | None
    reason: str = ""


class LoadRun(Record):
    """One run. Figures are of the requests that arrived in the window: after the warm-up, before the last arrival.

    good_share: of these, within the SLO. good_per_s, completed_per_s: of all that ended in the window, a second of
    it, so that what a queue gives back after the end is no throughput. answered: those that got an answer or an error
    with its status. others_gap: inter-token gaps of the requests that are not of the kind `long`.
    """

    number: int
    requests: int
    duration_s: float
    window_s: float
    offered_per_s: float
    valid: bool
    invalid_reason: str
    lag_p50_ms: float
    lag_p99_ms: float
    loop_lag_p99_ms: float
    client_cpu_share: float
    endings: dict[str, int]
    answered_share: float
    steadiness: Steadiness
    good_share: Estimate | None
    good_per_s: float
    completed_per_s: float
    output_tokens_per_s: float
    ttft: Quantiles | None
    tpot: Quantiles | None
    gap: Quantiles | None
    e2e: Quantiles | None
    others_gap: Quantiles | None
    tokens_per_s_per_user: float | None
    tenants: list[TenantFigures]
    fairness: Fairness | None
    energy: Energy
    cost_per_million_tokens: float | None
    first_errors: list[str] = msgspec.field(default_factory=list)


class LoadRecord(Record):
    """results/{hardware}/serving/{server}/{scenario}.json; one row a request lies beside it in .requests.parquet, one
    row a second in .telemetry.parquet. figures: over the runs, with intervals. axes: what was asked of the server,
    which an expectation is tied to. rate_per_s: what was to be offered; a closed loop has none. gpus: 0 on a CPU."""

    hardware: str
    machine: str
    server: str
    server_command: str
    model: str
    scenario: str
    rate_per_s: float | None
    capacity_per_s: float | None
    gpus: int
    slo: Slo
    seed: int
    axes: dict[str, Any]
    runs: list[LoadRun]
    figures: dict[str, Estimate]
    provenance: Provenance


class RatePoint(Record):
    """One rate of a sweep. proven: by MLPerf's early-stopping rule; None when there were too few requests to tell."""

    rate_per_s: float
    run: LoadRun
    within: int
    beyond: int
    proven: bool | None
    reason: str = ""


class SweepRecord(Record):
    """results/{hardware}/serving/sweep.json. capacity_per_s: what the server completed under a closed loop that kept it
    full. highest_rate_per_s: the highest rate that held the SLO; None when none did."""

    hardware: str
    machine: str
    server: str
    server_command: str
    model: str
    slo: Slo
    percentile: float
    confidence: float
    capacity_per_s: float
    capacity_tokens_per_s: float
    concurrency: int
    highest_rate_per_s: float | None
    points: list[RatePoint]
    gpus: int
    axes: dict[str, Any]
    provenance: Provenance

"""The columns of the Parquet files that lie beside the records."""

from __future__ import annotations

import polars as pl

SAMPLES_SCHEMA: dict[str, type[pl.DataType]] = {
    "case": pl.String,
    "process": pl.Int64,
    "round": pl.Int64,
    "side": pl.String,
    "order": pl.Int64,
    "time_ms": pl.Float64,
}
# Beside them since 2026-11-28: of the same turn, in a call of its own; null where it was not measured.
GPU_BUSY = "gpu_busy_ms"
TOKENS_SCHEMA: dict[str, type[pl.DataType]] = {
    "precision": pl.String,
    "window": pl.Int64,
    "position": pl.Int64,
    "token": pl.Int64,
    "nll_nats": pl.Float32,
}
REQUESTS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "run": pl.Int64,
    "number": pl.Int64,
    "tenant": pl.String,
    "kind": pl.String,
    "intended_s": pl.Float64,
    "lag_ms": pl.Float64,
    "ttft_ms": pl.Float64,
    "tpot_ms": pl.Float64,
    "e2e_ms": pl.Float64,
    "gaps_ms": pl.List(pl.Float32),
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "ending": pl.String,
    "status": pl.Int64,
    "reason": pl.String,
    "in_window": pl.Boolean,
    "good": pl.Boolean,
}
TELEMETRY_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "run": pl.Int64,
    "second": pl.Float64,
    "running": pl.Float64,
    "waiting": pl.Float64,
    "cache_usage": pl.Float64,
    "under_way": pl.Int64,
    "output_tokens_per_s": pl.Float64,
    "power_w": pl.Float64,
}
# One row a figure of one run. value, low and high are null where the case did not pass; `status` says what it did.
HISTORY_SCHEMA: dict[str, type[pl.DataType]] = {
    "run": pl.String,
    "run_utc": pl.String,
    "run_commit": pl.String,
    "hardware": pl.String,
    "machine": pl.String,
    "subject": pl.String,
    "metric": pl.String,
    "status": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "unit": pl.String,
    "higher_is_better": pl.Boolean,
    "axes": pl.String,
    "setting": pl.String,
    "commit": pl.String,
    "dirty": pl.Boolean,
    "code_sha": pl.String,
    "environment": pl.String,
    "measured_utc": pl.String,
    "record_sha": pl.String,
}

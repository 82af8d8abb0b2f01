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
TOKENS_SCHEMA: dict[str, type[pl.DataType]] = {
    "precision": pl.String,
    "window": pl.Int64,
    "position": pl.Int64,
    "token": pl.Int64,
    "nll_nats": pl.Float32,
}

"""Synthetic histories: as many runs as values, one commit a run, intervals of a stated width."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from serveproof.tables import HISTORY_SCHEMA

START = datetime(2026, 1, 1, tzinfo=UTC)
Floats = npt.NDArray[np.float64]


def commit(run: int) -> str:
    return f"{run:04x}" + "c" * 36


def runs(figures: Mapping[str, Floats], interval: float = 0.004, **changes: Any) -> pl.DataFrame:
    """subject -> its values, oldest first, all of one length. changes: columns; a callable gets the run's number."""
    rows = []
    for subject, values in figures.items():
        for number, value in enumerate(values):
            date = (START + timedelta(days=number)).isoformat(timespec="seconds")
            row = {
                "run": f"run{number:04}", "run_utc": date, "run_commit": commit(number), "hardware": "cpu",
                "machine": "Some CPU", "subject": subject, "metric": "speedup", "status": "passed",
                "value": float(value), "low": float(value) * (1 - interval), "high": float(value) * (1 + interval),
                "unit": "x", "higher_is_better": True, "axes": '{"n": 1}', "setting": "5 processes x 10 rounds",
                "commit": commit(number), "dirty": False, "code_sha": "same", "environment": "torch=2.13.0 driver=",
                "measured_utc": date, "record_sha": f"{subject} {number}",
            }  # fmt: skip
            rows.append(row | {name: one(number) if callable(one) else one for name, one in changes.items()})
    return pl.DataFrame(rows, schema=HISTORY_SCHEMA)


def noise(runs_: int, spread: float, seed: int, level: float = 2.0) -> Floats:
    """Independent runs of one level, lognormal, with a standard deviation of `spread`."""
    return level * np.exp(np.random.default_rng(seed).normal(0.0, spread, runs_))

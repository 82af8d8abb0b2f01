"""Detection rates by simulation from samples recorded on one H200 (2026-11-23, 5 processes x 10 rounds)."""

from __future__ import annotations

import polars as pl
import pytest

from serveproof.bench import detection
from serveproof.pairs import ROOT

RUNS = 60


@pytest.mark.parametrize("pair", ["flash_sdp", "paged_attention"])
def test_rates_from_recorded_samples(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = pl.read_parquet(ROOT / f"tests/data/h200_{pair}.parquet")
    for case in samples["case"].unique(maintain_order=True):
        figures = detection.recorded_of(samples, case, "cuda")
        assert set(figures) == {"speedup", "optimized_ms"}
        for metric, recorded in figures.items():
            found = detection.rates(recorded, metric, "cuda", RUNS)
            regressed = [found[slowdown]["regressed"] / RUNS for slowdown in detection.SLOWDOWNS]
            with capsys.disabled():
                shown = ", ".join(f"{s:.0%}: {r:.0%}" for s, r in zip(detection.SLOWDOWNS, regressed, strict=True))
                print(f"\n{pair}/{case} {metric}: slowdown called regressed in {shown}", end="")
            assert regressed[0] == 0, "an A/A run is called regressed"
            assert regressed == sorted(regressed)
            assert regressed[-2] == 1, "10 % is not always called regressed"


def test_a_case_by_the_hosts_clock_is_told_by_the_gpus_own_time() -> None:
    samples = pl.read_parquet(ROOT / "reports/published/h200/pairs/runtime_scheduler/samples.parquet")
    (recorded,) = detection.recorded_of(samples, "r32_slots8", "cuda").values()
    found = detection.rates(recorded, "optimized_gpu_busy_ms", "cuda", RUNS)
    assert (found[0.0]["met"], found[0.05]["regressed"]) == (RUNS, RUNS)
    assert set(detection.recorded_of(samples, "r32_slots8", "cpu")) == {"speedup"}

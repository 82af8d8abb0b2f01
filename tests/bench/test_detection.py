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
        found = detection.rates(samples, case, "cuda", RUNS)
        regressed = [found[slowdown]["regressed"] / RUNS for slowdown in detection.SLOWDOWNS]
        with capsys.disabled():
            shown = ", ".join(f"{s:.0%}: {r:.0%}" for s, r in zip(detection.SLOWDOWNS, regressed, strict=True))
            print(f"\n{pair}/{case}: slowdown called regressed in {shown}", end="")
        assert regressed[0] == 0, "an A/A run is called regressed"
        assert regressed == sorted(regressed)
        assert regressed[-2] == 1, "10 % is not always called regressed"

"""What Nsight Compute really told: launches recorded on an H100 (tests/bench/nsight), against what is known of them.

Recorded 2026-11-27 by `scripts/profile_pairs.py --profile deep_dive` (its *_raw.json), ncu 2025.3.1 with nsight-python
0.9.6, driver 580.159.04; hardware.json has the ceilings that the same machine measured just before.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from serveproof.bench.profiling_counters import SCALAR, counters
from serveproof.bench.profiling_job import RawKernel
from serveproof.profile_records import Counters
from serveproof.results import HardwareRecord, read

RECORDED = Path(__file__).parent / "nsight"
PRODUCT_FLOPS = 2 * 8192**3


def launches(pair: str, case: str, side: str) -> list[RawKernel]:
    kind = dict[str, dict[str, list[RawKernel]]]
    return msgspec.json.decode((RECORDED / f"{pair}.json").read_bytes(), type=kind)[case][side]


def rows(pair: str, case: str, side: str, dtype: str) -> list[Counters]:
    recorded = launches(pair, case, side)
    machine = read(RECORDED / "hardware.json", HardwareRecord)
    found, left_out = counters(recorded, machine.ceilings, dtype)
    assert left_out == 0
    assert sum(row.launches for row in found) == len(recorded)
    assert found == sorted(found, key=lambda row: -row.time_ms)
    return found


@pytest.mark.parametrize(
    ("side", "dtype", "bytes_each"), [("baseline", "bfloat16", 2), ("optimized", "float8_e4m3fn", 1)]
)
def test_a_matrix_product_has_its_flops_and_reaches_the_measured_rate(side: str, dtype: str, bytes_each: int) -> None:
    (row,) = rows("fp8_transformer_engine", "gemm_8192", side, dtype)
    assert row.bound_by == "flops"
    assert row.flops == pytest.approx(PRODUCT_FLOPS, rel=0.03)
    # a lone kernel can't beat what the probe of ceilings reached back to back, but for that probe's spread
    assert row.fraction == pytest.approx(1.0, abs=0.03)
    assert row.tensor_share is not None
    assert row.tensor_share > 0.9
    least_bytes = 8192**2 * (2 * bytes_each + 2)
    assert row.dram_bytes is not None
    assert least_bytes < row.dram_bytes < 4 * least_bytes


def test_fused_attention_skips_half_the_square_and_the_scores_never_reach_memory() -> None:
    (row,) = rows("flash_sdp", "causal_s8192_d128", "optimized", "bfloat16")
    whole = 4 * 2 * 32 * 8192**2 * 128
    assert row.flops is not None
    assert 0.5 * whole < row.flops < 0.53 * whole, "the causal half, and what lies over it on the diagonal's tiles"
    # q, k, v and out, read and written about once
    least_bytes = 4 * 2 * 32 * 8192 * 128 * 2
    assert row.dram_bytes is not None
    assert 0.9 * least_bytes < row.dram_bytes < 1.2 * least_bytes
    assert row.bound_by == "flops"


def test_plain_attention_is_bound_by_the_scores_it_writes() -> None:
    found = rows("flash_sdp", "causal_s8192_d128", "baseline", "bfloat16")
    assert {row.bound_by for row in found} == {"bytes"}
    assert "SoftMax" in found[0].kernel
    scores_bytes = 2 * 32 * 8192**2 * 2
    moved = sum(row.dram_bytes or 0.0 for row in found)
    assert moved > 8 * scores_bytes, "written and read by every one of its kernels"
    products = [row for row in found if row.tensor_share and row.tensor_share > 0.3]
    assert [round((row.flops or 0.0) / (2 * 2 * 32 * 8192**2 * 128), 2) for row in products] == [1.0, 1.0]


def test_every_counter_that_is_asked_for_on_hopper_was_there() -> None:
    for kernel in launches("flash_sdp", "causal_s8192_d128", "baseline"):
        assert kernel.metrics.keys() >= SCALAR.keys()

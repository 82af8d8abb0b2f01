"""A float8 cache against the same values unquantised: within e4m3's error, in half the bytes."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.inputs import Refill
from serveproof.bench.verification import CORRUPTIONS, check, corrupt, errors
from serveproof.ops import paging

PAIR = pairs.load("fp8_kv_cache")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AXES = {
    "batch": 5,
    "q_heads": 8,
    "kv_heads": 2,
    "head_dim": 32,
    "page_size": 16,
    "max_len": 200,
    "median_len": 60,
    "dtype": "float32",
}
# e4m3 has 3 mantissa bits: a value is off by at most 2^-4 of itself, or half of the least step, 2^-10 of the 448.
E4M3_ERROR = 2.0**-4
OPTIMIZED_EPS = 600_000  # as config/workloads.yaml has it for float32


def output(side: str, made: dict) -> torch.Tensor:
    module = PAIR.side(side)
    return module.build(pairs.restrict(module, made))()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=5),
    page=st.sampled_from([1, 16, 32]),
    kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([16, 64]),
)
def test_any_ragged_batch(lengths: list[int], page: int, kv_heads: int, head_dim: int) -> None:
    axes = AXES | {"batch": len(lengths), "page_size": page, "kv_heads": kv_heads, "head_dim": head_dim}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "draw_lengths", lambda axes: torch.tensor(lengths))
        made = PAIR.baseline.make_inputs(axes, "cpu", 3)
        reference = PAIR.baseline.reference(made)
    assert check(output("baseline", made), reference, 32).status == "passed"
    # one token of k moves the weights of all, so a row may be off by more than its values are
    assert errors(output("optimized", made), reference)[0] < 2 * E4M3_ERROR


@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_wrong_outputs_are_rejected(side: str) -> None:
    tolerance_eps = 32 if side == "baseline" else OPTIMIZED_EPS
    made, other = (PAIR.baseline.make_inputs(AXES, "cpu", seed) for seed in (0, 1))
    reference = PAIR.baseline.reference(made)
    out, stale = output(side, made), output(side, other)
    assert check(out, reference, tolerance_eps).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, out, stale), reference, tolerance_eps).status == "failed", kind


def test_quantised_outputs_are_not_the_baselines() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    assert check(output("optimized", made), PAIR.baseline.reference(made), 32).status == "failed"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), magnitude=st.floats(1e-3, 1e3))
def test_quantising_is_within_e4m3s_error(seed: int, magnitude: float) -> None:
    torch.manual_seed(seed)
    pool_NPHD = torch.randn(3, 4, 2, 8) * torch.tensor([1.0, magnitude])[:, None]
    fp8_NPHD, scale_H = PAIR.baseline.quantized(pool_NPHD)
    back_NPHD = fp8_NPHD.float() * scale_H[:, None]
    assert fp8_NPHD.dtype == torch.float8_e4m3fn
    bound_NPHD = pool_NPHD.abs() * E4M3_ERROR + scale_H[:, None] * 2.0**-10
    assert ((back_NPHD - pool_NPHD).abs() <= bound_NPHD * 1.0001).all()
    torch.testing.assert_close(back_NPHD.abs().amax((0, 1, 3)), pool_NPHD.abs().amax((0, 1, 3)))


def test_a_head_of_zeros_stays_zero() -> None:
    fp8_NPHD, scale_H = PAIR.baseline.quantized(torch.zeros(1, 2, 1, 4))
    assert not fp8_NPHD.float().any()
    assert scale_H.isfinite().all()


def test_refilling_keeps_pools_and_scales_together() -> None:
    refill = Refill(PAIR, AXES, "cpu", 0)
    run = PAIR.optimized.build(pairs.restrict(PAIR.optimized, refill.live))
    run()
    refill.fresh()
    assert check(run(), PAIR.baseline.reference(refill.live), OPTIMIZED_EPS).status == "passed"


def test_half_the_bytes_of_a_16_bit_cache() -> None:
    made = PAIR.baseline.make_inputs(AXES | {"dtype": "bfloat16"}, "cpu", 0)
    before, after = (PAIR.side(side).metrics(made)["kv_bytes_used"][0] for side in ("baseline", "optimized"))
    assert before == int(made["lengths_B"].sum()) * 2 * 2 * 32 * 2
    assert after - 2 * 2 * 4 == before / 2  # but for two scales a head


def test_work_counts_a_byte_a_number() -> None:
    tokens = int(paging.draw_lengths(AXES).sum())
    assert PAIR.baseline.work(AXES)["bytes"] == 2 * tokens * 2 * 32 + 2 * 5 * 8 * 32 * 4


def test_each_side_reads_its_own_pages_only() -> None:
    shared = set(PAIR.baseline.READS) & set(PAIR.optimized.READS)
    assert shared == {"q_BHD", "block_table_BP", "lengths_B"}


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and TRITON_INTERPRET not 1")
def test_on_a_gpu() -> None:
    made = PAIR.baseline.make_inputs(AXES | {"head_dim": 128, "max_len": 900, "dtype": "bfloat16"}, "cuda", 0)
    reference = PAIR.baseline.reference(made)
    assert check(output("baseline", made), reference, 2).status == "passed"
    built = PAIR.optimized.build(pairs.restrict(PAIR.optimized, made))
    makers = built if isinstance(built, dict) else {"": lambda: built}
    for name, make_run in makers.items():
        result = check(make_run()(), reference, 8)
        assert result.status == "passed", (name, result.reason)

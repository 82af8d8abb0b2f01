"""A float8 KV cache: quantised by head, read back within what its mantissa gives."""

from __future__ import annotations

import pytest
import torch

from serveproof import pairs

PAIR = pairs.load("fp8_kv_cache")
AXES = {
    "batch": 4, "q_heads": 8, "kv_heads": 2, "head_dim": 64, "page_size": 16, "max_len": 200, "median_len": 60,
    "dtype": "float32",
}  # fmt: skip


def error(side: object, made: dict[str, object]) -> float:
    reference = PAIR.baseline.reference(made)
    found = side.build(pairs.restrict(side, made))()  # type: ignore[attr-defined, arg-type]
    return float((found.double() - reference).norm() / reference.norm())


def test_both_sides_on_a_cpu() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    assert error(PAIR.baseline, made) < 1e-6
    assert 0.01 < error(PAIR.optimized, made) < 0.0625


def test_heads_of_unlike_magnitude_have_scales_of_their_own() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    pool = made["k_pages_NPHD"].clone()
    pool[:, :, 1] *= 1000
    quantized, scale_H = PAIR.baseline.quantized(pool)
    assert float(scale_H[1] / scale_H[0]) == pytest.approx(1000, rel=0.5)
    back = quantized.float() * scale_H[:, None]
    for head in range(2):
        assert float((back[:, :, head] - pool[:, :, head]).norm() / pool[:, :, head].norm()) < 0.05


def test_a_head_of_zeros_stays_zeros() -> None:
    quantized, scale_H = PAIR.baseline.quantized(torch.zeros(3, 4, 2, 8))
    assert torch.isfinite(scale_H).all()
    assert not quantized.float().any()


def test_work_and_metrics_count_a_byte_a_number() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    tokens = int(made["lengths_B"].sum())
    assert PAIR.baseline.work(AXES)["bytes"] == 2 * tokens * 2 * 64 + 2 * 4 * 8 * 64 * 4
    assert PAIR.optimized.metrics(made)["kv_bytes_used"][0] == 2 * tokens * 2 * 64 + 16
    assert PAIR.baseline.metrics(made)["kv_bytes_used"][0] == 4 * 2 * tokens * 2 * 64

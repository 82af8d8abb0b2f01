"""The check itself: right outputs pass, the four corruptions and subtler faults don't, for every pair in kernels/."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from serveproof import pairs
from serveproof.bench import inputs, verification

WORKLOADS = yaml.safe_load((pairs.ROOT / "config/workloads.yaml").read_text())
CASES = [(name, case) for name in pairs.names() for case in WORKLOADS[name].get("cpu", [])]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['case']}" for name, case in CASES])
@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_every_pair_passes_and_rejects_the_four_corruptions(name: str, case: dict[str, Any], side: str) -> None:
    pair = pairs.load(name)
    refusal = pair.optimized.requires("cpu")
    if refusal:
        pytest.skip(refusal)
    refill = inputs.Refill(pair, case["axes"], "cpu", seed=7)
    found = verification.verify_side(verification.build_side(pair, side, refill), refill, pair, case["tolerance_eps"])
    assert (found.status, found.reason) == ("passed", "")
    assert found.must_fail == dict.fromkeys(verification.CORRUPTIONS, True)


def test_every_pair_has_a_workload_and_every_workload_a_pair() -> None:
    assert set(WORKLOADS) == set(pairs.names())


@pytest.fixture
def reference() -> torch.Tensor:
    return torch.randn(4096, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rounding_to_the_dtype_passes(reference: torch.Tensor) -> None:
    assert verification.check(reference.bfloat16(), reference, 2).status == "passed"


def test_one_wrong_row_in_many_fails_though_the_norm_passes(reference: torch.Tensor) -> None:
    reference[17] *= 1e-2  # a small row: its own scale counts, not the output's
    output = reference.bfloat16()
    output[17] = 0
    found = verification.check(output, reference, 2)
    assert found.relative_error is not None
    assert found.relative_bound is not None
    assert found.relative_error < found.relative_bound
    assert found.status == "failed"
    assert "an element's error" in found.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_fails(reference: torch.Tensor, value: float) -> None:
    output = reference.float()
    output[0, 0] = value
    assert verification.check(output, reference, 1e6).status == "failed"


def test_another_shape_is_an_error(reference: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="shape"):
        verification.errors(reference[:-1], reference)


def test_a_check_that_accepts_corruption_is_itself_a_failure() -> None:
    pair = pairs.load("flash_sdp")
    axes = {"batch": 1, "heads": 1, "seq": 16, "head_dim": 8, "causal": False, "dtype": "float32"}
    refill = inputs.Refill(pair, axes, "cpu", seed=0)
    run = verification.build_side(pair, "optimized", refill)
    found = verification.verify_side(run, refill, pair, tolerance_eps=1e8)
    assert found.status == "failed"
    assert "it can't fail" in found.reason

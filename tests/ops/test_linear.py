"""16-bit products by way of float32: the float32 product rounded once, in any shape, where units are missing alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.ops import linear as ops


@pytest.fixture(params=[False, True], ids=["without units", "with units"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of CPU, whichever is at hand."""
    monkeypatch.setattr(ops, "CPU_UNITS", dict.fromkeys(ops.CPU_UNITS, request.param))
    return bool(request.param)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.integers(0, 2**16),
)
def test_the_float32_product_rounded_once(
    rows: int, outputs: int, inputs: int, piece: int, dtype: torch.dtype, seed: int
) -> None:
    """Small whole numbers: every sum is exact, so every way must give the same bits."""
    generator = torch.Generator().manual_seed(seed)
    x_MK = torch.randint(-8, 9, (rows, inputs), generator=generator).to(dtype)
    weight_NK = torch.randint(-8, 9, (outputs, inputs), generator=generator).to(dtype)
    expected_MN = F.linear(x_MK.float(), weight_NK.float()).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "CPU_UNITS", {dtype: False})
        patch.setattr(ops, "PIECE_WEIGHTS", piece)
        found_MN = ops.linear(x_MK, weight_NK)
    assert found_MN.dtype == dtype
    assert torch.equal(found_MN, expected_MN)


def test_leading_dimensions_stay(units: bool) -> None:
    x_BLK, weight_NK = torch.randn(2, 5, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    found = ops.linear(x_BLK, weight_NK)
    assert found.shape == (2, 5, 3)
    torch.testing.assert_close(
        found.float(), F.linear(x_BLK.double(), weight_NK.double()).float(), rtol=2**-8, atol=1e-2
    )


def test_float32_is_torchs_own(units: bool) -> None:
    x_MK, weight_NK = torch.randn(9, 8), torch.randn(3, 8)
    assert torch.equal(ops.linear(x_MK, weight_NK), F.linear(x_MK, weight_NK))


def test_only_a_cpu_without_units_widens(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is multiplied, by what torch is asked for: float32 where units are missing, but for a few rows."""
    asked: list[torch.dtype] = []
    own = F.linear
    monkeypatch.setattr(ops.F, "linear", lambda x, weight: (asked.append(weight.dtype), own(x, weight))[1])
    layer = ops.Linear(8, 3).bfloat16()
    for rows in (1, ops.NARROW_ROWS, ops.NARROW_ROWS + 1):
        layer(torch.randn(rows, 8).bfloat16())
    narrow = torch.bfloat16
    assert asked == [narrow, narrow, narrow if units else torch.float32]

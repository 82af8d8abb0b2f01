"""Plain and flash attention against the float64 reference, with and without the QKV projection."""

from __future__ import annotations

import pytest
import torch

from serveproof import pairs

PAIR = pairs.load("flash_sdp")
AXES = {"batch": 2, "heads": 3, "seq": 65, "head_dim": 16, "causal": False, "dtype": "float32"}


@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"seq": 1}, {"hidden": 48}, {"hidden": 48, "causal": True}])
def test_both_sides_equal_the_reference(changes: dict[str, object]) -> None:
    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    reference = PAIR.baseline.reference(made)
    assert reference.dtype == torch.float64
    for side in (PAIR.baseline, PAIR.optimized):
        torch.testing.assert_close(side.build(made)().double(), reference, rtol=1e-4, atol=1e-5)


def test_work_counts_half_of_a_causal_product_and_the_projection() -> None:
    plain = PAIR.baseline.work(AXES)
    assert plain["flops"] == 4 * 2 * 3 * 65 * 65 * 16
    assert PAIR.baseline.work(AXES | {"causal": True})["flops"] == plain["flops"] / 2
    assert PAIR.baseline.work(AXES | {"hidden": 48})["flops"] == plain["flops"] + 2 * 2 * 65 * 48 * 3 * 48


def test_hidden_must_be_heads_times_head_dim() -> None:
    with pytest.raises(ValueError, match="heads \\* head_dim is 48"):
        PAIR.baseline.make_inputs(AXES | {"hidden": 64}, "cpu", 0)

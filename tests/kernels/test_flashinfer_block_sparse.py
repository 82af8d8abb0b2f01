"""Block-sparse attention: both sides and our Triton kernel against float64, for any mask of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs

PAIR = pairs.load("flashinfer_block_sparse")
AXES = {"seq": 96, "heads": 2, "head_dim": 16, "block": 16, "window_blocks": 1, "dtype": "float32"}


def with_mask(mask_MM: torch.Tensor, **changes: Any) -> dict[str, Any]:
    axes = AXES | {"seq": len(mask_MM) * AXES["block"]} | changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PAIR.baseline, "block_mask", lambda axes: mask_MM)
        found: dict[str, Any] = PAIR.baseline.make_inputs(axes, "cpu", 0)
    return found


def both_equal(made: dict[str, Any]) -> None:
    reference = PAIR.baseline.reference(made)
    found = PAIR.optimized.build(pairs.restrict(PAIR.optimized, made))()
    torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-5)
    dense = PAIR.baseline.build(pairs.restrict(PAIR.baseline, made))().double()
    seen = made["mask_SS"].any(1)
    torch.testing.assert_close(dense[seen], reference[seen], rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.data())
def test_any_mask(M: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=M, max_size=M))
    both_equal(with_mask(torch.tensor(rows)))


@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize("mask", [torch.ones, torch.eye])
def test_all_blocks_and_the_diagonal_alone(M: int, mask: Any) -> None:
    shape = (M,) if mask is torch.eye else (M, M)
    both_equal(with_mask(mask(*shape).bool()))


@pytest.mark.parametrize(("rows", "keys"), [(16, 16), (16, 32), (16, 64)])
def test_our_kernel_in_the_interpreter(rows: int, keys: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("these tensors are the interpreter's")
    from serveproof.ops import block_sparse

    mask_MM = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()
    made = with_mask(mask_MM, heads=1)
    tuning = block_sparse.Tuning(rows, keys, 4, 2)
    found = block_sparse.block_sparse_attention(*(made[name] for name in PAIR.optimized.READS), tuning=tuning)
    torch.testing.assert_close(found.double(), PAIR.baseline.reference(made), rtol=1e-4, atol=1e-5)
    assert not found[16:32].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"block": 24, "seq": 96}, "blocks of 24"), ({"head_dim": 24}, "head dimension 24")],
)
def test_our_kernel_refuses_what_it_cannot_take(changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from serveproof.ops.block_sparse import block_sparse_attention

    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    with pytest.raises(NotImplementedError, match=message):
        block_sparse_attention(*(made[name] for name in PAIR.optimized.READS))


def test_density_is_what_was_asked_for_and_even_over_rows() -> None:
    mask_MM = PAIR.baseline.block_mask(AXES | {"seq": 8192, "block": 128, "window_blocks": 2, "density": 0.138})
    assert int(mask_MM.sum()) == round(0.138 * 64 * 64)
    assert set(mask_MM.sum(1).tolist()) <= {8, 9}
    assert mask_MM.diagonal().all()


def test_work_counts_kept_blocks_only() -> None:
    kept = int(PAIR.baseline.block_mask(AXES).sum()) * 16 * 16
    assert PAIR.baseline.work(AXES)["flops"] == 4 * 2 * 16 * kept
    assert kept < 96 * 96


def test_seq_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="seq is 90"):
        PAIR.baseline.block_mask(AXES | {"seq": 90})

"""Block-sparse attention: both sides and our Triton kernel against float64, for any mask of blocks."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.candidates import made as make_candidates
from serveproof.bench.verification import CORRUPTIONS, check, corrupt

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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
    [({"block": 24}, "blocks of 24: a multiple of 16"), ({"head_dim": 24}, "head dimension 24")],
)
def test_our_kernel_refuses_what_it_cannot_take(changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from serveproof.ops.block_sparse import block_sparse_attention

    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    with pytest.raises(NotImplementedError, match=message):
        block_sparse_attention(*(made[name] for name in PAIR.optimized.READS))


@pytest.mark.parametrize("block", [16, 32, 48, 64, 96, 128])
def test_our_kernels_own_tiles_in_the_interpreter(block: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("these tensors are the interpreter's")
    from serveproof.ops.block_sparse import block_sparse_attention, tuning_of

    axes = AXES | {"seq": 3 * block, "block": block, "heads": 1, "window_blocks": 0, "density": 0.5}
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    found = block_sparse_attention(*(made[name] for name in PAIR.optimized.READS))
    torch.testing.assert_close(found.double(), PAIR.baseline.reference(made), rtol=1e-4, atol=1e-5)
    assert block % tuning_of(block).rows == 0


def test_tiles_that_do_not_fit_are_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from triton.runtime.errors import OutOfResources

    from serveproof.ops import block_sparse

    class TooLarge:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            def launch(*arguments: Any, **constants: Any) -> None:
                raise OutOfResources(262144, 232448, "shared memory")

            return launch

    monkeypatch.setattr(block_sparse, "_forward", TooLarge())
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    runs, refusals = make_candidates({"ours": lambda: PAIR.optimized.build_triton(made)})
    assert not runs
    assert "Required: 262144" in refusals["ours"]


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


@settings(max_examples=50, deadline=None)
@given(M=st.integers(1, 12), window=st.integers(0, 3), density=st.none() | st.floats(0, 1))
def test_any_axes_give_a_csr_of_the_mask_without_empty_rows(M: int, window: int, density: float | None) -> None:
    axes = AXES | {"seq": 16 * M, "window_blocks": window, "heads": 1, "head_dim": 1}
    axes |= {} if density is None else {"density": density}
    mask_MM = PAIR.baseline.block_mask(axes)
    number = torch.arange(M)
    window_MM = (number[:, None] - number[None]).abs() <= window
    assert mask_MM[window_MM].all()
    if density is None:
        assert torch.equal(mask_MM, window_MM)
    else:
        # no fewer than were asked for; more only where the window alone has more
        asked = round(density * M * M)
        assert asked <= int(mask_MM.sum()) <= asked + int(window_MM.sum())
    made = PAIR.baseline.make_inputs(axes, "cpu", 0)
    back_MM = torch.zeros_like(mask_MM)
    for row in range(M):
        columns = made["indices"][made["indptr"][row] : made["indptr"][row + 1]].long()
        assert columns.tolist() == sorted(set(columns.tolist()))
        back_MM[row, columns] = True
    assert torch.equal(back_MM, mask_MM)
    assert torch.equal(made["mask_SS"], mask_MM.repeat_interleave(16, 0).repeat_interleave(16, 1))
    assert PAIR.baseline.work(axes)["flops"] == 4 * int(made["mask_SS"].sum())


@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_wrong_outputs_are_rejected(side: str) -> None:
    made, other = (PAIR.baseline.make_inputs(AXES, "cpu", seed) for seed in (0, 1))
    reference = PAIR.baseline.reference(made)
    out, stale = (PAIR.side(side).build(pairs.restrict(PAIR.side(side), inputs))() for inputs in (made, other))
    assert check(out, reference, 32).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, out, stale), reference, 32).status == "failed", kind


def test_a_block_too_many_or_too_few_is_rejected() -> None:
    mask_MM = PAIR.baseline.block_mask(AXES)
    reference = PAIR.baseline.reference(with_mask(mask_MM))
    for row, column in ((0, 5), (3, 2)):
        other_MM = mask_MM.clone()
        other_MM[row, column] ^= True
        out = PAIR.optimized.build(pairs.restrict(PAIR.optimized, with_mask(other_MM)))()
        assert check(out, reference, 32).status == "failed"


def test_flashinfer_says_why_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="pip install flashinfer-python"):
        PAIR.optimized.build_flashinfer(made, "fa2")


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and TRITON_INTERPRET not 1")
@pytest.mark.parametrize("block", [16, 64, 128])
def test_every_candidate_on_a_gpu(block: int) -> None:
    axes = AXES | {"seq": 1024, "head_dim": 64, "block": block, "dtype": "bfloat16"}
    made = PAIR.baseline.make_inputs(axes, "cuda", 0)
    reference = PAIR.baseline.reference(made)
    runs, refusals = make_candidates(PAIR.optimized.build(pairs.restrict(PAIR.optimized, made)))
    assert "triton block-sparse" in runs, refusals
    for name, run in runs.items():
        result = check(run(), reference, 4)
        assert result.status == "passed", (name, result.reason)

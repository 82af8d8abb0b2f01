"""Pieces in torch and in Triton (interpreted) against the whole eager step and the float64 reference; bucket choice."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.verification import CORRUPTIONS, check, corrupt
from serveproof.ops import decode_step

PAIR = pairs.load("piece_graphs")
AXES = {
    "batch": 3,
    "layers": 2,
    "hidden": 32,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "ffn": 64,
    "vocab": 96,
    "context": 40,
    "dtype": "float32",
}
TOLERANCE_EPS = 32
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_pieces(made: dict, held: dict, pieces: list, attend: list) -> torch.Tensor:
    """The step as optimized_piece_graphs runs it, its pieces not captured."""
    batch = len(made["x_BE"])
    held["x_BE"][:batch].copy_(made["x_BE"])
    pieces[0]()
    for call, piece in zip(attend, pieces[1:], strict=True):
        call()
        piece()
    return held["logits_BV"][:batch]


def assert_right(output: torch.Tensor, reference: torch.Tensor) -> None:
    result = check(output, reference, TOLERANCE_EPS)
    assert result.status == "passed", result.reason


@pytest.mark.parametrize("changes", [{}, {"batch": 1}, {"batch": 8, "context": 5}, {"context": 2}, {"kv_heads": 4}])
def test_eager_step_equals_the_reference(changes: dict[str, object]) -> None:
    made = PAIR.baseline.make_inputs(AXES | changes, "cpu", 0)
    reference = PAIR.baseline.reference(made)
    assert reference.dtype == torch.float64
    assert_right(PAIR.baseline.build(made)(), reference)


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 4), (1, 8), (8, 8)])
def test_torch_pieces_equal_the_reference_with_and_without_padding(batch: int, rows: int) -> None:
    made = PAIR.baseline.make_inputs(AXES | {"batch": batch}, "cpu", 0)
    held = decode_step.buffers(made, rows)
    pieces = decode_step.torch_pieces(made, held, rows, None)
    output = run_pieces(made, held, pieces, decode_step.sdpa_attention(made, held))
    assert_right(output, PAIR.baseline.reference(made))


def test_padding_rows_write_to_the_scratch_slot_alone() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    before = made["k_cache_LNKD"].clone()
    held = decode_step.buffers(made, 8)
    run_pieces(made, held, decode_step.torch_pieces(made, held, 8, None), decode_step.sdpa_attention(made, held))
    changed = (made["k_cache_LNKD"] != before).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
    own = [b * 40 + n for b, n in enumerate(made["lengths_B"].tolist())]
    assert changed == sorted([*own, 3 * 40])


def triton_output(made: dict, rows: int, splits: int, block_s: int = 16) -> torch.Tensor:
    pytest.importorskip("triton")
    from serveproof.ops import gemv_pieces, split_attention
    from serveproof.ops.gemv import Config

    one = dict.fromkeys(gemv_pieces.ONE_ROW, Config(16, 16, 1))
    more = dict.fromkeys(gemv_pieces.MORE_ROWS, Config(16, 32, 1))
    held = decode_step.buffers(made, rows)
    batch = len(made["x_BE"])
    attend = split_attention.prepare(
        held["q_BHD"][:batch], made["k_cache_LNKD"], made["v_cache_LNKD"], made["lengths_B"], made["context"],
        held["attention_BHD"][:batch], splits, block_s, 1, 1, None, 0,
    )  # fmt: skip
    pieces = gemv_pieces.pieces(made, held, rows, gemv_pieces.Choice(one_row=one, more_rows=more))
    return run_pieces(made, held, pieces, [lambda call=call: call(0) for call in attend])


@pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is 0: Triton compiles")
@pytest.mark.parametrize(("batch", "rows", "splits"), [(1, 1, 1), (1, 1, 4), (3, 4, 2)])
def test_fused_triton_pieces_equal_the_reference(batch: int, rows: int, splits: int) -> None:
    made = PAIR.baseline.make_inputs(AXES | {"batch": batch, "layers": 1}, "cpu", 1)
    assert_right(triton_output(made, rows, splits), PAIR.baseline.reference(made))


@pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is 0: Triton compiles")
def test_splits_without_a_token_of_their_own_add_nothing() -> None:
    made = PAIR.baseline.make_inputs(AXES | {"batch": 2, "layers": 1, "context": 3}, "cpu", 1)
    assert_right(triton_output(made, 2, 4), PAIR.baseline.reference(made))


def test_blocks_that_do_not_divide_the_shape_are_refused() -> None:
    pytest.importorskip("triton")
    from serveproof.ops import gemv

    with pytest.raises(ValueError, match="not multiples of the blocks"):
        gemv.linear(
            torch.zeros(1, 24), None, torch.zeros(16, 24), torch.zeros(1, 16), False, gemv.Config(16, 16, 1), False
        )


def test_wrong_outputs_are_rejected() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    other = PAIR.baseline.make_inputs(AXES, "cpu", 1)
    output, stale = PAIR.baseline.build(made)(), PAIR.baseline.build(other)()
    reference = PAIR.baseline.reference(made)
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, output, stale), reference, TOLERANCE_EPS).status == "failed", kind


def test_weights_do_not_change_with_the_seed_and_the_rest_does() -> None:
    one, other = (PAIR.baseline.make_inputs(AXES, "cpu", seed) for seed in (0, 1))
    changed = {name for name, value in one.items() if isinstance(value, torch.Tensor) and not value.equal(other[name])}
    assert changed == {"x_BE", "k_cache_LNKD", "v_cache_LNKD"}


@given(batch=st.integers(1, 64), buckets=st.sets(st.integers(1, 64), min_size=1))
def test_the_bucket_is_the_smallest_that_fits(batch: int, buckets: set[int]) -> None:
    if batch > max(buckets):
        with pytest.raises(ValueError, match="fits no bucket"):
            decode_step.bucket_of(batch, sorted(buckets))
        return
    chosen = decode_step.bucket_of(batch, sorted(buckets))
    assert chosen in buckets
    assert chosen >= batch
    assert not any(batch <= bucket < chosen for bucket in buckets)


def test_work_counts_every_weight_once_whatever_the_batch() -> None:
    one, eight = (PAIR.baseline.work(AXES | {"batch": batch}) for batch in (1, 8))
    matrices = 2 * (32 * (8 * 16) + 64 * 32 + 2 * 32 * 64 + 64 * 32) + 96 * 32
    norms = 5 * 32
    assert one["bytes"] == 4 * (matrices + norms + 2 * 2 * 40 * 2 * 16 + 32 + 96)
    assert eight["flops"] > 7 * one["flops"]
    assert eight["bytes"] < 3 * one["bytes"]


def test_no_graphs_on_a_cpu() -> None:
    assert "CUDA graphs" in PAIR.optimized.requires("cpu")
    assert PAIR.optimized.requires("cuda") is None


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU and TRITON_INTERPRET=0")
@pytest.mark.parametrize("batch", [1, 3])
def test_every_candidate_equals_the_reference_on_a_gpu(batch: int) -> None:
    axes = AXES | {
        "batch": batch, "hidden": 2048, "q_heads": 32, "kv_heads": 8, "head_dim": 64, "ffn": 8192, "vocab": 4096,
        "context": 300, "dtype": "bfloat16",
    }  # fmt: skip
    made = PAIR.baseline.make_inputs(axes, "cuda", 0)
    for name, make_run in PAIR.optimized.build(made).items():
        result = check(make_run()(), PAIR.baseline.reference(made), 6)
        assert result.status == "passed", (name, result.reason)

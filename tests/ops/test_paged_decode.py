"""Our paged decode in Triton's interpreter against float64, and the plan that deals its chunks out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.ops import paging

pytest.importorskip("triton", reason="triton is not installed")
from serveproof.ops import paged_decode

SMALL = paged_decode.Tuning(32, 16, 4, 2)
QUANTIZED = pairs.load("fp8_kv_cache").baseline.quantized
gpu_or_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="these tensors are the interpreter's")


def made(lengths: list[int], **changes: Any) -> dict[str, Any]:
    axes = {"q_heads": 8, "kv_heads": 2, "head_dim": 64, "page_size": 16, "dtype": "float32"} | changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "draw_lengths", lambda axes: torch.tensor(lengths).clamp(min=1))
        found = paging.paged_inputs(axes | {"batch": len(lengths)}, "cpu", 0)
    found["lengths_B"] = torch.tensor(lengths)
    return found


def error(inputs: dict[str, Any], plan: paged_decode.Plan, fp8: bool = False) -> float:
    k, v, scales = inputs["k_pages_NPHD"], inputs["v_pages_NPHD"], None
    if fp8:
        (k, k_scale), (v, v_scale) = QUANTIZED(k), QUANTIZED(v)
        scales = k_scale, v_scale
    out = paged_decode.paged_decode(inputs["q_BHD"], k, v, inputs["block_table_BP"], inputs["lengths_B"], plan, scales)
    lengths = inputs["lengths_B"].tolist()
    reference = paging.attend_each(inputs["q_BHD"], inputs["k_cache_BSHD"], inputs["v_cache_BSHD"], lengths)
    for b, n in enumerate(lengths):
        assert n or not out[b].any()
    return float((out.double() - reference).norm() / reference.norm())


@gpu_or_interpreter
@pytest.mark.parametrize(
    ("lengths", "changes", "bound"),
    [
        ([1], {}, 1e-6),
        ([16], {}, 1e-6),
        ([33, 0, 64, 7], {}, 1e-6),  # ragged, one empty, one two whole chunks
        ([20, 5], {"kv_heads": 8}, 1e-6),  # no grouping
        ([20, 5], {"kv_heads": 1}, 1e-6),  # 8 query heads a KV head
        ([18], {"head_dim": 128}, 1e-6),
        ([40, 3], {"page_size": 32, "dtype": "float16"}, 1e-3),
    ],
)
def test_equals_float64(lengths: list[int], changes: dict[str, Any], bound: float) -> None:
    inputs = made(lengths, **changes)
    plan = paged_decode.plan_for_lengths(inputs["lengths_B"], 8, inputs["q_BHD"].shape[2], SMALL)
    assert error(inputs, plan) < bound


@gpu_or_interpreter
def test_a_float8_cache_is_within_what_three_mantissa_bits_give() -> None:
    inputs = made([33, 9], dtype="float16", head_dim=16)
    plan = paged_decode.plan_for_lengths(inputs["lengths_B"], 8, 16, SMALL)
    assert 0.01 < error(inputs, plan, fp8=True) < 0.0625


@gpu_or_interpreter
def test_a_plan_larger_than_needed_and_filled_again_serves_other_lengths() -> None:
    plan = paged_decode.make_plan(2, 9, 8, 64, SMALL, "cpu")
    for lengths in ([70, 3], [1, 65]):
        inputs = made(lengths)
        paged_decode.fill_plan(plan, inputs["lengths_B"])
        assert error(inputs, plan) < 1e-6


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=8), spare=st.integers(0, 5))
def test_every_token_is_in_exactly_one_chunk(lengths: list[int], spare: int) -> None:
    items = max(1, paged_decode.items_of(lengths, SMALL.chunk)) + spare
    plan = paged_decode.make_plan(len(lengths), items, 1, 16, SMALL, "cpu")
    paged_decode.fill_plan(plan, torch.tensor(lengths))
    seen = [set() for _ in lengths]
    for seq, start in zip(plan.item_seq.tolist(), plan.item_start.tolist(), strict=True):
        if seq >= 0:
            tokens = set(range(start, min(start + SMALL.chunk, lengths[seq])))
            assert tokens
            assert not tokens & seen[seq]
            seen[seq] |= tokens
    assert seen == [set(range(n)) for n in lengths]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"head_dim": 48}, "head dimension 48"), ({"q_heads": 9, "kv_heads": 2}, "9 query heads over 2")],
)
def test_a_shape_that_the_tiles_cannot_take_is_a_refusal(changes: dict[str, Any], message: str) -> None:
    inputs = made([5], **changes)
    plan = paged_decode.plan_for_lengths(inputs["lengths_B"], *inputs["q_BHD"].shape[1:], SMALL)
    with pytest.raises(NotImplementedError, match=message):
        error(inputs, plan)


def test_a_float8_pool_needs_scales() -> None:
    inputs = made([5])
    inputs["k_pages_NPHD"] = inputs["k_pages_NPHD"].to(torch.float8_e4m3fn)
    plan = paged_decode.plan_for_lengths(inputs["lengths_B"], 8, 64, SMALL)
    with pytest.raises(NotImplementedError, match="float8_e4m3fn needs scales"):
        error(inputs, plan)

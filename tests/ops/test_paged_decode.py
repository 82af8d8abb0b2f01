"""The kernel, interpreted, against float64 on shapes at every edge; on a GPU compiled, and in a graph."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serveproof.ops import paging
from serveproof.ops.paged_plan import Tuning, fill_plan, make_plan, plan_for, tuning_of

pytest.importorskip("triton")
from serveproof.ops import paged_decode as pd

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CPU = pytest.mark.skipif(not INTERPRETED, reason="Triton compiles: TRITON_INTERPRET is not 1")
ON_GPU = pytest.mark.skipif(
    INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and TRITON_INTERPRET not 1"
)
SMALL = Tuning(32, 16, 4, 2)


def problem(lengths: list[int], group: int = 4, kv_heads: int = 1, D: int = 16, page: int = 16, dtype=torch.float16):
    """(inputs of paging, reference): the unused ends of pages are NaN, as memory that was never written may be."""
    axes = {"q_heads": group * kv_heads, "kv_heads": kv_heads, "head_dim": D, "page_size": page}
    axes |= {"batch": len(lengths), "max_len": max(lengths), "median_len": 1, "dtype": str(dtype)[6:]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "draw_lengths", lambda axes: torch.tensor(lengths))
        made = paging.paged_inputs(axes, "cuda" if not INTERPRETED else "cpu", 0)
    for b, n in enumerate(lengths):
        if n % page:
            for name in ("k", "v"):
                made[f"{name}_pages_NPHD"][made["block_table_BP"][b, n // page], n % page :] = float("nan")
    reference = paging.attend_each(made["q_BHD"], made["k_cache_BSHD"], made["v_cache_BSHD"], lengths)
    return made, reference


def decode(made: dict, tuning: Tuning = SMALL, **changes: object) -> torch.Tensor:
    made = made | changes
    k, v = made["k_pages_NPHD"], made["v_pages_NPHD"]
    plan = plan_for(made["q_BHD"], k, made["lengths_B"], tuning)
    args = (made["q_BHD"], k, v, made["block_table_BP"], plan, made.get("scales"))
    once = pd.paged_decode(*args)
    assert not plan.counters.any(), "the counters must be back at zero for the next layer"
    assert torch.equal(once, pd.paged_decode(*args)), "a plan serves every layer of a step"
    return once


def assert_right(out: torch.Tensor, reference: torch.Tensor, eps: float = 4) -> None:
    assert out.isfinite().all()
    error = (out.double() - reference).norm() / reference.norm()
    assert error <= eps * torch.finfo(out.dtype).eps, float(error)


@ON_CPU
@pytest.mark.parametrize("lengths", [[1], [16], [17], [33, 1], [0, 40], [100, 0, 3, 64]])
def test_lengths_at_every_edge(lengths: list[int]) -> None:
    made, reference = problem(lengths)
    out_BHD = decode(made)
    assert_right(out_BHD, reference)
    assert not any(out_BHD[b].any() for b, n in enumerate(lengths) if n == 0)


@ON_CPU
@pytest.mark.parametrize(
    ("group", "kv_heads", "D", "page"),
    [(1, 2, 16, 16), (8, 1, 64, 32), (16, 1, 128, 16), (3, 2, 32, 128), (2, 2, 16, 4)],
)
def test_heads_dimensions_and_pages(group: int, kv_heads: int, D: int, page: int) -> None:
    made, reference = problem([50, 9], group, kv_heads, D, page)
    assert_right(decode(made), reference)


@ON_CPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("flip", [False, True])
def test_dtypes_and_products_the_other_way_round(dtype: torch.dtype, flip: bool) -> None:
    made, reference = problem([70, 20], dtype=dtype)
    assert_right(decode(made, Tuning(32, 16, 4, 2, flip)), reference)


@ON_CPU
def test_pages_that_lie_by_heads_first() -> None:
    made, reference = problem([45, 18], kv_heads=2)
    by_head = {
        name: made[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("k_pages_NPHD", "v_pages_NPHD")
    }
    assert by_head["k_pages_NPHD"].stride() != made["k_pages_NPHD"].stride()
    assert_right(decode(made, **by_head), reference)


def quantized(made: dict) -> dict:
    """The pools as e4m3 with a scale a head; NaN stays NaN, as garbage beyond a length may be."""
    changes, scales = {}, []
    for name in ("k_pages_NPHD", "v_pages_NPHD"):
        pool = made[name].float()
        scale_H = pool.nan_to_num().abs().amax(dim=(0, 1, 3)) / 448
        changes[name] = (pool / scale_H[:, None]).to(torch.float8_e4m3fn)
        scales.append(scale_H)
    return changes | {"scales": tuple(scales)}


def contiguous(made: dict, pool_NPHD: torch.Tensor) -> torch.Tensor:
    """A pool as a contiguous cache (B, S, KVH, D)."""
    return pool_NPHD[made["block_table_BP"].long()].flatten(1, 2)


@ON_CPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_float8_cache_is_read_exactly(dtype: torch.dtype) -> None:
    made, _ = problem([70, 1, 20], group=2, kv_heads=2, D=32, dtype=dtype)
    made["v_pages_NPHD"] *= torch.tensor([1.0, 50.0], dtype=dtype)[:, None]
    changes = quantized(made)
    widened = {
        name: contiguous(made, changes[name].to(torch.float64) * scale[:, None])
        for name, scale in zip(("k_pages_NPHD", "v_pages_NPHD"), changes["scales"], strict=True)
    }
    reference = paging.attend_each(made["q_BHD"], *widened.values(), made["lengths_B"].tolist())
    # float16 products even where q is float32 would not meet float32's bound
    assert_right(decode(made, **changes), reference, 8)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-128, 127), min_size=4, max_size=4))
@ON_CPU
def test_pairs_of_e4m3_widen_exactly(values: list[int]) -> None:
    raw = torch.tensor(values, dtype=torch.int8).repeat(8, 8).view(torch.float8_e4m3fn)  # (8, 32)
    q = torch.zeros(1, 1, 32, dtype=torch.float16)
    pool = raw[None, :, None].contiguous()
    wanted = raw.float()
    assume(not wanted.isnan().any())
    one = torch.ones(1)
    plan = plan_for(q, pool, torch.tensor([8]), SMALL)
    out = pd.paged_decode(q, pool, pool, torch.zeros(1, 1, dtype=torch.int32), plan, (one, one))
    torch.testing.assert_close(out[0, 0].float(), wanted.mean(0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("q", "pool", "scales", "match"),
    [
        ((1, 2, 24), (1, 16, 1, 24), False, "head dimension 24"),
        ((1, 3, 16), (1, 16, 2, 16), False, "3 query heads over 2"),
        ((1, 2, 16), (1, 16, 1, 16), True, "float8_e4m3fn needs scales"),
    ],
)
def test_shapes_that_the_tiles_cannot_take_are_refused(q: tuple, pool: tuple, scales: bool, match: str) -> None:
    made = torch.zeros(pool, dtype=torch.float16)
    plan = plan_for(torch.zeros(q), made, torch.tensor([4]), SMALL)
    one = (torch.ones(pool[2]), torch.ones(pool[2])) if scales else None
    with pytest.raises(NotImplementedError, match=match):
        pd.paged_decode(torch.zeros(q, dtype=torch.float16), made, made, torch.zeros(1, 1).int(), plan, one)


@ON_GPU
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("group", "D", "page"), [(1, 64, 16), (4, 128, 16), (8, 128, 64), (16, 64, 128), (4, 256, 16)])
def test_on_a_gpu(group: int, D: int, page: int, fp8: bool) -> None:
    lengths = [2000, 1, 0, page, 777]
    made, reference = problem(lengths, group, 2, D, page, torch.bfloat16)
    changes = quantized(made) if fp8 else {}
    for tuning in {tuning_of(D, 1 if fp8 else 2), Tuning(128, 64, 4, 3), Tuning(128, 64, 4, 3, flip=not fp8)}:
        assert_right(decode(made, tuning, **changes).cpu(), reference.cpu(), 8 if fp8 else 2)


@ON_GPU
def test_a_graph_follows_the_lengths_of_its_plan() -> None:
    made, _ = problem([900, 300], 4, 2, 128, 16, torch.bfloat16)
    plan = make_plan(made["q_BHD"], made["k_pages_NPHD"], 16, Tuning(128, 64, 4, 3))

    def step() -> torch.Tensor:
        fill_plan(plan, made["lengths_B"])
        return pd.paged_decode(made["q_BHD"], made["k_pages_NPHD"], made["v_pages_NPHD"], made["block_table_BP"], plan)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for lengths in ([900, 300], [5, 299], [0, 64]):
        made["lengths_B"].copy_(torch.tensor(lengths))
        graph.replay()
        reference = paging.attend_each(made["q_BHD"], made["k_cache_BSHD"], made["v_cache_BSHD"], lengths)
        assert_right(out, reference, 2)

"""Paged equals contiguous equals the reference, for ragged lengths, lengths of 1 and full pages."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.bench.verification import CORRUPTIONS, check, corrupt
from serveproof.ops import paging

PAIR = pairs.load("paged_attention")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AXES = {
    "batch": 5,
    "q_heads": 8,
    "kv_heads": 2,
    "head_dim": 16,
    "page_size": 16,
    "max_len": 70,
    "median_len": 20,
    "dtype": "float32",
}


def outputs(axes: dict[str, object], lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(paging, "draw_lengths", lambda axes: torch.tensor(lengths))
    made = PAIR.baseline.make_inputs(axes | {"batch": len(lengths), "max_len": max(lengths)}, "cpu", 3)
    sides = [pairs_side.build(pairs.restrict(pairs_side, made))() for pairs_side in (PAIR.baseline, PAIR.optimized)]
    return [*sides, PAIR.baseline.reference(made)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    page=st.sampled_from([1, 4, 16]),
    kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([8, 64]),
)
def test_any_ragged_batch(lengths: list[int], page: int, kv_heads: int, head_dim: int) -> None:
    axes = AXES | {"page_size": page, "kv_heads": kv_heads, "head_dim": head_dim}
    with pytest.MonkeyPatch.context() as patch:
        contiguous, paged, reference = outputs(axes, lengths, patch)
    torch.testing.assert_close(contiguous.double(), reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(paged.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [16], [17], [1, 16, 32, 33], [15, 15, 15]])
def test_lengths_at_a_pages_edges(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    contiguous, paged, reference = outputs(AXES, lengths, monkeypatch)
    torch.testing.assert_close(contiguous.double(), reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(paged.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["baseline", "optimized"])
def test_wrong_outputs_are_rejected(side: str) -> None:
    module = PAIR.side(side)
    made, other = (PAIR.baseline.make_inputs(AXES, "cpu", seed) for seed in (0, 1))
    output, stale = (module.build(pairs.restrict(module, inputs))() for inputs in (made, other))
    reference = PAIR.baseline.reference(made)
    assert check(output, reference, 32).status == "passed"
    for kind in CORRUPTIONS:
        assert check(corrupt(kind, output, stale), reference, 32).status == "failed", kind


def test_equal_lengths_leave_no_padding_to_save() -> None:
    made = PAIR.baseline.make_inputs(AXES | {"lengths": "uniform", "max_len": 32}, "cpu", 0)
    assert made["lengths_B"].tolist() == [32] * 5
    assert PAIR.baseline.metrics(made)["kv_bytes_reserved"][0] == PAIR.optimized.metrics(made)["kv_bytes_reserved"][0]


def test_work_counts_valid_tokens_only() -> None:
    work = PAIR.baseline.work(AXES)
    tokens = int(paging.draw_lengths(AXES).sum())
    assert work["flops"] == 4 * tokens * 8 * 16
    assert work["bytes"] == (2 * tokens * 2 + 2 * 5 * 8) * 16 * 4


def test_reserved_and_used_bytes() -> None:
    made = PAIR.baseline.make_inputs(AXES, "cpu", 0)
    used = int(made["lengths_B"].sum()) * 2 * 2 * 16 * 4
    padded, paged = PAIR.baseline.metrics(made), PAIR.optimized.metrics(made)
    assert padded["kv_bytes_used"][0] == paged["kv_bytes_used"][0] == used
    assert padded["kv_bytes_reserved"][0] == made["k_cache_BSHD"].nbytes + made["v_cache_BSHD"].nbytes
    assert paged["kv_bytes_reserved"][0] == made["k_pages_NPHD"].nbytes + made["v_pages_NPHD"].nbytes
    assert paged["kv_fragmentation"][0] < padded["kv_fragmentation"][0]


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and TRITON_INTERPRET not 1")
@pytest.mark.parametrize("lengths", ["uniform", "long_tailed"])
def test_every_candidate_equals_the_reference_on_a_gpu(lengths: str) -> None:
    axes = AXES | {"head_dim": 128, "max_len": 500, "median_len": 100, "lengths": lengths, "dtype": "bfloat16"}
    made = PAIR.baseline.make_inputs(axes, "cuda", 0)
    for name, make_run in PAIR.optimized.build(pairs.restrict(PAIR.optimized, made)).items():
        result = check(make_run()(), PAIR.baseline.reference(made), 2)
        assert result.status == "passed", (name, result.reason)

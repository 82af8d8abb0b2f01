"""Paged equals contiguous equals the reference, for ragged lengths, lengths of 1 and full pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof import pairs
from serveproof.ops import paging

PAIR = pairs.load("paged_attention")
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


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=8), page=st.integers(1, 32))
def test_a_block_table_gives_every_page_to_one_sequence(lengths: list[int], page: int) -> None:
    table_BP, pages = paging.block_table(torch.tensor(lengths), page)
    used = [page_id for b, n in enumerate(lengths) for page_id in table_BP[b, : -(-n // page)].tolist()]
    assert sorted(used) == list(range(pages))


def test_lengths_are_long_tailed_and_the_same_for_every_seed() -> None:
    axes = AXES | {"batch": 64, "max_len": 4096, "median_len": 300}
    lengths = paging.draw_lengths(axes)
    assert torch.equal(lengths, paging.draw_lengths(axes))
    assert lengths.max() == 4096
    assert lengths.min() >= 1
    assert lengths.double().mean() > 1.2 * lengths.double().median()


def test_uniform_lengths_and_a_wrong_kind_of_them() -> None:
    assert paging.draw_lengths(AXES | {"lengths": "uniform"}).tolist() == [70] * 5
    with pytest.raises(ValueError, match="axis lengths is 'even'"):
        paging.draw_lengths(AXES | {"lengths": "even"})


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5), page=st.sampled_from([1, 8, 16]))
def test_pages_hold_what_the_contiguous_cache_holds_and_flashinfer_is_told_so(lengths: list[int], page: int) -> None:
    lengths_B = torch.tensor(lengths)
    table_BP, pages = paging.block_table(lengths_B, page)
    cache_BSHD = torch.randn(len(lengths), max(lengths), 2, 4)
    pool_NPHD = paging.fill_pages(cache_BSHD, lengths_B, table_BP, pages, page)
    indptr, indices, last_B = paging.flashinfer_plan(table_BP, lengths_B, page)
    for b, n in enumerate(lengths):
        mine = indices[indptr[b] : indptr[b + 1]].long()
        assert (len(mine) - 1) * page + int(last_B[b]) == n
        assert torch.equal(pool_NPHD[mine].flatten(0, 1)[:n], cache_BSHD[b, :n])


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

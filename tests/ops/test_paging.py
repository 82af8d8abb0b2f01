"""Page arithmetic: every page belongs to one sequence, and every token lies where table and indices say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.ops import paging

LENGTHS = st.lists(st.integers(0, 200), min_size=1, max_size=8).filter(any)
AXES = {"batch": 64, "max_len": 4096, "median_len": 300}


@given(lengths=LENGTHS, page=st.integers(1, 32))
def test_a_block_table_gives_every_page_to_one_sequence(lengths: list[int], page: int) -> None:
    table_BP, pages = paging.block_table(torch.tensor(lengths), page)
    used = [page_id for b, n in enumerate(lengths) for page_id in table_BP[b, : -(-n // page)].tolist()]
    assert sorted(used) == list(range(pages))


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, page=st.integers(1, 20))
def test_every_token_is_where_the_table_says_and_the_rest_is_zero(lengths: list[int], page: int) -> None:
    lengths_B = torch.tensor(lengths)
    table_BP, pages = paging.block_table(lengths_B, page)
    token = 1 + torch.arange(len(lengths) * max(lengths), dtype=torch.float32).view(len(lengths), -1)
    token *= torch.arange(max(lengths))[None] < lengths_B[:, None]  # padding is zero
    pool_NPHD = paging.fill_pages(token[:, :, None, None], lengths_B, table_BP, pages, page)
    for b, n in enumerate(lengths):
        for s in range(n):
            assert pool_NPHD[table_BP[b, s // page], s % page, 0, 0] == token[b, s]
    assert int((pool_NPHD != 0).sum()) == sum(lengths)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=8), page=st.integers(1, 32))
def test_indptr_indices_and_last_pages_are_the_tables(lengths: list[int], page: int) -> None:
    table_BP, pages = paging.block_table(torch.tensor(lengths), page)
    indptr, indices, last_B = paging.flashinfer_plan(table_BP, torch.tensor(lengths), page)
    assert {indptr.dtype, indices.dtype, last_B.dtype} == {torch.int32}
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == pages
    for b, n in enumerate(lengths):
        own = indices[indptr[b] : indptr[b + 1]]
        assert torch.equal(own, table_BP[b, : len(own)])
        assert (len(own) - 1) * page + int(last_B[b]) == n


def test_lengths_are_long_tailed_and_the_same_for_every_call() -> None:
    lengths = paging.draw_lengths(AXES)
    assert torch.equal(lengths, paging.draw_lengths(AXES))
    assert lengths.max() == 4096
    assert lengths.min() >= 1
    assert lengths.double().mean() > 1.2 * lengths.double().median()


def test_uniform_lengths_are_the_longest() -> None:
    assert paging.draw_lengths(AXES | {"lengths": "uniform"}).tolist() == [4096] * 64


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="'zipf'"):
        paging.draw_lengths(AXES | {"lengths": "zipf"})


def test_padded_and_paged_hold_the_same_values() -> None:
    axes = {"batch": 3, "q_heads": 4, "kv_heads": 2, "head_dim": 8, "page_size": 4, "max_len": 11, "median_len": 5}
    made = paging.paged_inputs(axes | {"dtype": "float32"}, "cpu", 0)
    for name in ("k", "v"):
        gathered = made[f"{name}_pages_NPHD"][made["block_table_BP"].long()].flatten(1, 2)
        for b, n in enumerate(made["lengths_B"].tolist()):
            assert torch.equal(gathered[b, :n], made[f"{name}_cache_BSHD"][b, :n])
            assert not made[f"{name}_cache_BSHD"][b, n:].any()


def test_an_empty_sequence_attends_to_nothing() -> None:
    q, cache = torch.randn(2, 2, 4), torch.randn(2, 3, 1, 4)
    out_BHD = paging.attend_each(q, cache, cache, [0, 3])
    assert not out_BHD[0].any()
    assert out_BHD[1].all()

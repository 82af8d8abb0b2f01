"""Plans cover every token of every sequence exactly once, whatever lengths come, and leave no wave half empty."""

from __future__ import annotations

import heapq

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveproof.ops import paged_plan, paging

LENGTHS = st.lists(st.integers(0, 700), min_size=1, max_size=8)
SMALL = paged_plan.Tuning(32, 16, 4, 2)


def covered(plan: paged_plan.Plan, lengths: list[int]) -> None:
    """Every token in exactly one item; slots are distinct, and those of a sequence lie together."""
    items = [item for item in plan.items.t().tolist() if item[0] >= 0]
    tokens = [(seq, t) for seq, start, end, *_ in items for t in range(start, end)]
    assert len(tokens) == len(set(tokens)) == sum(lengths)
    assert set(tokens) == {(b, t) for b, n in enumerate(lengths) for t in range(n)}
    assert len({item[3] for item in items}) == len(items)
    for seq, start, _, slot, first, count in items:
        own = [item for item in items if item[0] == seq]
        assert len(own) == count
        assert {item[3] for item in own} == set(range(first, first + count))
        assert first <= slot < plan.items.shape[1]
        assert start % plan.tuning.tile == 0
    assert {item[0] for item in items} == set(range(len(lengths)))
    sizes = [end - start for _, start, end, *_ in items]
    assert sizes == sorted(sizes, reverse=True)


def blank(batch: int, q_heads: int = 2, kv_heads: int = 1, D: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """q and a pool whose shapes a plan is made for."""
    return torch.zeros(batch, q_heads, D, dtype=torch.float16), torch.zeros(1, 16, kv_heads, D, dtype=torch.float16)


@given(lengths=LENGTHS, chunk=st.integers(0, 12), tile=st.sampled_from([16, 32]), kv_heads=st.sampled_from([1, 8]))
def test_an_exact_plan_covers_every_token_once(lengths: list[int], chunk: int, tile: int, kv_heads: int) -> None:
    q, pool = blank(len(lengths), 8, kv_heads)
    plan = paged_plan.plan_for(q, pool, torch.tensor(lengths), paged_plan.Tuning(12 * tile, tile, 4, 2), chunk * tile)
    covered(plan, lengths)
    assert (plan.items[0] >= 0).all()
    assert int((plan.items[2] - plan.items[1]).max()) <= (chunk or 12) * tile


@given(first=LENGTHS, extra=st.integers(0, 20), data=st.data())
def test_a_plan_of_fixed_size_covers_whatever_lengths_come(first: list[int], extra: int, data: st.DataObject) -> None:
    plan = paged_plan.make_plan(*blank(len(first)), len(first) + extra, SMALL)
    paged_plan.fill_plan(plan, torch.tensor(first))
    covered(plan, first)
    buffers = plan.items.data_ptr()
    then = data.draw(st.lists(st.integers(0, 5000), min_size=len(first), max_size=len(first)))
    paged_plan.fill_plan(plan, torch.tensor(then))
    covered(plan, then)
    assert plan.items.data_ptr() == buffers


def makespan(plan: paged_plan.Plan) -> int:
    """Tokens until the last program is done: in the plan's order, each goes to the first place to be free."""
    places = [0] * plan.at_once
    for _, start, end, *_ in plan.items.t().tolist():
        for _ in range(plan.kv_heads):
            heapq.heappush(places, heapq.heappop(places) + end - start + paged_plan.START_TOKENS)
    return max(places)


LONG_TAILED = paging.draw_lengths({"batch": 64, "max_len": 8192, "median_len": 1500}).tolist()


@pytest.mark.parametrize("lengths", [[8192] * 64, [2048] * 64, [4096] * 8, LONG_TAILED])
def test_the_chosen_part_length_is_within_a_fifth_of_the_best(lengths: list[int]) -> None:
    """Every part length simulated: the choice is made by waves and means, without a simulation."""
    q, pool = blank(len(lengths), 32, 8, 128)
    lengths_B = torch.tensor(lengths)
    chosen = makespan(paged_plan.plan_for(q, pool, lengths_B))
    chunks = range(256, 8193, 256)
    spans = [makespan(paged_plan.plan_for(q, pool, lengths_B, chunk=chunk)) for chunk in chunks]
    assert chosen <= 1.2 * min(spans)
    assert chosen < 0.9 * max(spans)


def test_a_plan_has_an_item_for_every_sequence() -> None:
    with pytest.raises(ValueError, match="3 items for 4 sequences"):
        paged_plan.make_plan(*blank(4), 3, SMALL)


def test_filling_a_plan_waits_for_no_value() -> None:
    """Meta tensors have no values: whatever would fetch one to the host fails."""
    q, pool = (tensor.to("meta") for tensor in blank(4, 32, 8, 128))
    plan = paged_plan.make_plan(q, pool, 64)
    paged_plan.fill_plan(plan, torch.zeros(4, dtype=torch.int64, device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        plan.items.sum().item()

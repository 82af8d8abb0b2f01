"""Pages of a cache as bytes: moved exactly, sums that tell one wrong bit, content adopted from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serveproof.distributed import exchange, hand_over, replicas
from serveproof.distributed.equality import config_for, differing, relative_error
from serveproof.distributed.hand_over import Answer, Trial
from serveproof.distributed.pages import Written, block_bytes, bytes_of, checksums, write_bytes
from serveproof.engine.block_manager import BlockManager
from serveproof.engine.engine import Engine
from serveproof.engine.kv_cache import KVCache
from serveproof.engine.loader import random_model
from serveproof.engine.parallel import SINGLE
from serveproof.engine.sequence import SamplingParams
from serveproof.engine.settings import Settings
from serveproof.engine.start import start_with


def cache(dtype: torch.dtype = torch.float32) -> KVCache:
    generator = torch.Generator().manual_seed(3)
    pool = torch.randn(2, 2, 7, 4, 2, 3, generator=generator).to(dtype)
    return KVCache(pool, torch.empty(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_pages_move_exactly_and_no_other_page_changes(dtype: torch.dtype) -> None:
    source, target = cache(dtype), KVCache(torch.zeros(2, 2, 7, 4, 2, 3).to(dtype), torch.empty(0))
    data = bytes_of(source, [5, 2])
    assert data.shape == (2, block_bytes(source))
    write_bytes(target, [1, 6], data)
    assert torch.equal(target.pool[:, :, 1].float(), source.pool[:, :, 5].float())
    assert torch.equal(target.pool[:, :, 6].float(), source.pool[:, :, 2].float())
    assert not target.pool[:, :, [0, 2, 3, 4, 5]].float().any()


def test_no_pages_are_no_rows() -> None:
    source = cache()
    data = bytes_of(source, [])
    assert data.shape == (0, block_bytes(source))
    assert checksums(data).shape == (0,)
    write_bytes(source, [], data)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 388), st.integers(0, 2))
def test_any_one_bit_changes_that_pages_sum_alone(bit: int, byte: int, page: int) -> None:
    data = torch.randint(256, (3, 389), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = checksums(data)
    data[page, byte] ^= 1 << bit
    assert (checksums(data) != before).tolist() == [number == page for number in range(3)]


def test_words_that_changed_places_are_told() -> None:
    data = torch.arange(64, dtype=torch.uint8).view(1, 64)
    swapped = data.clone()
    swapped[:, :8], swapped[:, 8:16] = data[:, 8:16], data[:, :8]
    assert checksums(data) != checksums(swapped)


def test_what_is_put_goes_at_once_with_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A send over NCCL may wait for its peer's receive, which never begins where the peer's own send waits too."""
    batches: list[list[tuple[str, int]]] = []
    recorded = SimpleNamespace(
        isend="send", irecv="receive", P2POp=lambda way, _, peer: (way, peer),
        batch_isend_irecv=lambda moves: batches.append(moves) or [],
    )  # fmt: skip
    monkeypatch.setattr(exchange, "dist", recorded)
    slots = exchange.Messages(torch.zeros(3, 8, dtype=torch.uint8), "nccl")
    slots.put(1, [0], slots.own[:1])
    slots.landed(2, [2])
    slots.put(1, [], slots.own[:0])
    slots.landed(2, [])
    assert batches == [[("send", 1), ("receive", 2)]]


def tiny_engine(page_size: int = 4) -> Engine:
    model = random_model(config_for(1), 1, torch.float32, "cpu", SINGLE)
    return start_with(
        model, Settings(dtype="fp32", max_running=2, token_budget=32, max_model_len=64, page_size=page_size)
    )


def test_every_block_that_a_step_writes_is_told() -> None:
    """A page whose bytes changed and that was not told would be missing in the copy."""
    engine = tiny_engine()
    runner = hand_over.runner_of(engine)
    engine.overlap = False
    engine.runner = written = Written(runner, 4)
    for number, length in enumerate((3, 17, 9)):
        engine.add(str(number), list(range(1, length + 1)), SamplingParams(max_tokens=9, ignore_eos=True))
    seen = 0
    while engine.busy:
        before = checksums(bytes_of(runner.cache, list(range(runner.cache.blocks))))
        engine.step()
        after = checksums(bytes_of(runner.cache, list(range(runner.cache.blocks))))
        changed = {page for page in (before != after).nonzero().flatten().tolist() if page}
        assert changed <= set(written.taken())
        seen += len(changed)
    assert seen > 20


def test_adopted_pages_are_found_and_used_and_must_hold_what_they_say() -> None:
    """The decode side alone: pages from another engine give the same tokens; wrong pages give others."""
    prompt = list(range(3, 33))
    prefill, decode = tiny_engine(), tiny_engine()
    expected = hand_over.answered(prefill, prompt, 8)
    blocks, _ = prefill.blocks.find(prompt)
    data = bytes_of(hand_over.runner_of(prefill).cache, blocks)
    assert len(blocks) == 29 // 4
    for wrong in (False, True):
        decode.blocks.forget_kept()
        pages, own = decode.blocks.adopt(prompt)
        assert pages == list(range(7))
        write_bytes(hand_over.runner_of(decode).cache, own, -data if wrong else data)
        answer = hand_over.answered(decode, prompt, 8)
        assert answer.found == 28
        assert (answer.tokens == expected.tokens) is not wrong


def test_what_is_known_already_is_not_adopted_again() -> None:
    blocks = BlockManager(10, 4)
    first = blocks.adopt(list(range(9)))
    assert first == ([0, 1], [1, 2])
    assert blocks.available == 9
    assert blocks.adopt(list(range(9))) == ([], [])
    assert blocks.adopt(list(range(13)))[0] == [2]
    assert blocks.find(list(range(13)))[0] == [1, 2, 3]
    assert BlockManager(3, 4).adopt(list(range(20)))[0] == [0, 1], "as many as there are"
    assert BlockManager(10, 4, prefix_caching=False).adopt(list(range(9))) == ([], [])


GOOD = Trial(64, 0.1, 0.2, 0.2, Answer([1, 2], 0.1, 8), Answer([1, 2], 0.2, 0), Answer([1, 2], 0.1, 8), True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sums_equal": False}, "checksums differ"),
        ({"handed": Answer([1, 2], 0.1, 4)}, "4 prompt tokens were found in the cache, 8 were handed over"),
        ({"recomputed": Answer([1, 2], 0.1, 8)}, "was not computed again"),
        ({"handed": Answer([1, 3], 0.1, 8)}, "tokens [1, 3] after the hand-over, [1, 2] from this rank's own pages"),
    ],
)
def test_what_is_wrong_in_a_hand_over_is_told(changes: dict[str, Any], told: str) -> None:
    assert hand_over.wrong_in(GOOD, 2, 4) == ""
    assert told in hand_over.wrong_in(replace(GOOD, **changes), 2, 4)


def test_steps_that_differ_are_told() -> None:
    assert differing([["a", "b"], ["a", "b"]]) == ""
    assert differing([["a", "b"], ["a", "c"]]) == "step 1: rank 1 has c, rank 0 has b"
    assert differing([["a", "b"], ["a"]]) == "step 1: rank 1 has nothing, rank 0 has b"


def test_errors_that_are_no_numbers_are_infinite() -> None:
    ones = torch.ones(3)
    assert relative_error(ones, ones) == 0
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0]), ones) == float("inf")
    assert relative_error(torch.ones(4), ones) == float("inf")


def test_skew_is_between_the_first_and_the_last_rank() -> None:
    steps = 7
    met = [[1000 * step for step in range(steps)], [1000 * step + 500 * step for step in range(steps)]]
    assert replicas.skews_us(met) == [2.5, 3.0]

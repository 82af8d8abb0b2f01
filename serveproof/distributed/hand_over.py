"""Disaggregated serving: a prefill worker computes a prompt's keys and values, a decode worker takes them into its
cache and goes on, instead of computing them again (DistServe, Zhong et al. 2024, arXiv:2401.09670; Splitwise, Patel et
al. 2024, arXiv:2311.18677).

Ranks stand in pairs, an even one prefills for the odd one after it. Whole pages travel, up to the page that holds the
prompt's last token; that page's tokens, at most page_size, are computed at the decode worker, as after any prefix hit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from serveproof.distributed import exchange
from serveproof.distributed.group import Ranks
from serveproof.distributed.pages import bytes_of, checksums, write_bytes
from serveproof.engine.engine import Engine
from serveproof.engine.model_runner import ModelRunner
from serveproof.engine.sequence import SamplingParams


@dataclass(frozen=True)
class Answer:
    """One request through an engine: its tokens, seconds to the first, prompt tokens found in the cache."""

    tokens: list[int]
    first_s: float
    found: int


@dataclass(frozen=True)
class Trial:
    """One prompt at the decode worker. transfer_s: from the prefill's end to the pages' being in the cache;
    handed_s: that and the first token; sums_equal: the pages' checksums at both workers."""

    bytes: int
    transfer_s: float
    handed_s: float
    recomputed_s: float
    handed: Answer
    recomputed: Answer
    again: Answer
    sums_equal: bool


def runner_of(engine: Engine) -> ModelRunner:
    """The engine's own runner, whose cache pages go into and come out of."""
    assert isinstance(engine.runner, ModelRunner)  # noqa: S101 (told to mypy)
    return engine.runner


def answered(engine: Engine, prompt: list[int], tokens: int) -> Answer:
    """A prompt alone through the engine, greedily."""
    before = engine.blocks.hit_tokens
    started = time.perf_counter()
    engine.add("alone", prompt, SamplingParams(max_tokens=tokens, ignore_eos=True))
    made: list[int] = []
    first_s = 0.0
    while engine.busy:
        for output in engine.step():
            first_s = first_s or time.perf_counter() - started
            made += output.tokens
    return Answer(made, first_s, engine.blocks.hit_tokens - before)


def prefill_side(ranks: Ranks, engine: Engine, slots: exchange.Exchange, prompt: list[int]) -> None:
    """Compute the prompt, then put its whole pages into the decode worker's memory."""
    peer, runner = ranks.rank + 1, runner_of(engine)
    engine.blocks.forget_kept()
    answered(engine, prompt, 1)
    blocks, _ = engine.blocks.find(prompt)
    ranks.synchronize()
    dist.barrier()
    slots.put(peer, list(range(len(blocks))), bytes_of(runner.cache, blocks))
    slots.landed(peer, [])
    ranks.synchronize()
    dist.barrier()
    dist.send(checksums(bytes_of(runner.cache, blocks)), peer)


def decode_side(
    ranks: Ranks, engine: Engine, slots: exchange.Exchange, prompt: list[int], tokens: int, corrupt: bool = False
) -> Trial:
    """Take the pages in and answer; then forget them and compute the prompt here; then answer from one's own pages.

    corrupt: flip one bit of what has come, as a link might.
    """
    peer, runner = ranks.rank - 1, runner_of(engine)
    engine.blocks.forget_kept()
    ranks.synchronize()
    dist.barrier()
    started = time.perf_counter()
    pages, blocks = engine.blocks.adopt(prompt)
    if len(pages) != (len(prompt) - 1) // engine.blocks.page_size:
        raise RuntimeError(f"the decode worker's cache had room for {len(pages)} pages of the prompt only")
    places = list(range(len(blocks)))
    slots.put(peer, [], slots.own[:0])
    slots.landed(peer, places)
    if corrupt:
        slots.own[len(blocks) // 2, slots.own.shape[1] // 3] ^= 1
    write_bytes(runner.cache, blocks, slots.own[: len(blocks)])
    ranks.synchronize()
    transfer_s = time.perf_counter() - started
    handed = answered(engine, prompt, tokens)
    dist.barrier()
    theirs = torch.empty(len(blocks), dtype=torch.int64, device=ranks.device)
    dist.recv(theirs, peer)
    sums_equal = torch.equal(theirs, checksums(bytes_of(runner.cache, blocks)))
    engine.blocks.forget_kept()
    recomputed = answered(engine, prompt, tokens)
    again = answered(engine, prompt, tokens)
    sent = len(blocks) * slots.own.shape[1]
    handed_s = transfer_s + handed.first_s
    return Trial(sent, transfer_s, handed_s, recomputed.first_s, handed, recomputed, again, sums_equal)


def wrong_in(trial: Trial, pages: int, page_size: int) -> str:
    """'' for a hand-over that is right: the pages' bytes, found in the cache, and the same tokens three ways.

    `again` goes the way of the hand-over, over this rank's own pages: equal to it bit for bit or not at all. The
    prompt computed in one piece rounds elsewhere on a GPU, so that in bfloat16 its tokens could differ by a tie.
    """
    if not trial.sums_equal:
        return "the pages' checksums differ between the workers"
    if trial.handed.found != pages * page_size:
        return f"{trial.handed.found} prompt tokens were found in the cache, {pages * page_size} were handed over"
    if trial.recomputed.found:
        return f"the prompt was not computed again: {trial.recomputed.found} tokens were found in the cache"
    if trial.handed.tokens != trial.again.tokens:
        return f"tokens {trial.handed.tokens} after the hand-over, {trial.again.tokens} from this rank's own pages"
    return ""

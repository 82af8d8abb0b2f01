"""All-reduce kernels of our own in Triton over peer-mapped memory, bfloat16, in place. No multicast, no multimem.

push: every 8-byte word that a rank writes into its peers' inboxes carries two values and the call's number, so that
receiving is waiting for words: no barrier, one trip over the link. It moves twice the bytes, so it is for small
tensors. NCCL's LL protocol; TensorRT-LLM's and flashinfer's 'lamport' all-reduce.
pull: stage, one barrier, read every peer's buffer. One-shot: TensorRT-LLM, vLLM's custom_all_reduce.
two-shot: each rank sums its share of every peer's buffer and writes the sum to all; a barrier before and after.

The first two have two buffers in turn, so nothing guards their reuse: a rank that writes call i + 2's buffer has ended
call i + 1, so every peer had begun i + 1 and ended i. Blocks meet only their namesakes on the other ranks, by numbers
that only grow and lie in device memory, so a CUDA graph can replay any number of calls. Sums are in float32 in the
ranks' order: every rank gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

Allocate = Callable[[int, torch.dtype, torch.device], tuple[torch.Tensor, list[int], Any]]
Call = Callable[[], None]

PUSH_WORDS, PUSH_WARPS = 1024, 8
PULL_WORDS, PULL_WARPS, PULL_BLOCKS = 2048, 16, 128
TWO_SHOT_WORDS, TWO_SHOT_WARPS, TWO_SHOT_BLOCKS = 2048, 16, 128
# A block that waits must run beside its namesakes: all of them fit on an H100's or H200's 132 processors at once.
PUSH_MOST_BLOCKS = 512
TURNS = 2
# A peer that never comes would make a GPU spin for good. After about a minute a wait gives up and the sum is NaN.
MOST_POLLS = tl.constexpr(2**26)


@triton.jit
def _low(word):
    """The first of the two bfloat16 in an int32, as float32."""
    return (word << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(word):
    """The second."""
    return ((word >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _packed(low, high):
    """An int32 of both, rounded to bfloat16."""
    first = low.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    second = high.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return first | second


@triton.jit
def _at(addresses, rank, kind: tl.constexpr):
    """A rank's buffer as a pointer: allocations start at 16 bytes, which lets four words move at once."""
    return tl.multiple_of(tl.load(addresses + rank).to(tl.pointer_type(kind)), 16)


@triton.jit
def _meet(flags, block, epoch, RANK: tl.constexpr, WORLD: tl.constexpr):
    """Wait for this block's namesakes: what any wrote before is visible to all after. NaN if one never came, else 0."""
    tl.debug_barrier()
    polls = tl.full((), 0, tl.int32)
    for step in tl.static_range(1, WORLD):
        peer = (RANK + step) % WORLD
        theirs = _at(flags, peer, tl.int32) + block * WORLD + RANK
        tl.atomic_xchg(theirs, epoch, sem="release", scope="sys")
    mine = _at(flags, RANK, tl.int32) + block * WORLD
    for step in tl.static_range(1, WORLD):
        peer = (RANK + step) % WORLD
        while (tl.atomic_add(mine + peer, 0, sem="acquire", scope="sys") < epoch) & (polls < MOST_POLLS):
            polls += 1
    tl.debug_barrier()
    return tl.where(polls < MOST_POLLS, 0.0, float("nan"))


@triton.jit
def _push(x, inboxes, epochs, words, stride, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    epoch = tl.load(epochs + block) + 1
    own = tl.load(x + at, mask=inside, other=0)
    turn = (epoch & 1) * WORLD * stride
    word = (epoch.to(tl.int64) << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(1, WORLD):
        theirs = _at(inboxes, (RANK + step) % WORLD, tl.int64)
        tl.store(theirs + turn + RANK * stride + at, word, mask=inside)
    inbox = _at(inboxes, RANK, tl.int64) + turn
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    polls = tl.full((), 0, tl.int32)
    for source in tl.static_range(WORLD):
        got = own
        if source != RANK:
            there = tl.load(inbox + source * stride + at, mask=inside, other=0, volatile=True)
            while (tl.min(tl.where(inside, (there >> 32).to(tl.int32), epoch), 0) < epoch) & (polls < MOST_POLLS):
                polls += 1
                there = tl.load(inbox + source * stride + at, mask=inside, other=0, volatile=True)
            got = there.to(tl.int32)
        low += _low(got)
        high += _high(got)
    late = tl.where(polls < MOST_POLLS, 0.0, float("nan"))
    tl.store(x + at, _packed(low + late, high + late), mask=inside)
    tl.store(epochs + block, epoch)


@triton.jit
def _pull(x, buffers, flags, epochs, words, stride, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    epoch = tl.load(epochs + block) + 1
    turn = (epoch & 1).to(tl.int64) * stride
    mine = _at(buffers, RANK, tl.int32) + turn
    for start in tl.range(block * BLOCK, words, blocks * BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(mine + at, tl.load(x + at, mask=at < words, other=0), mask=at < words)
    late = _meet(flags, block, epoch, RANK, WORLD)
    for start in tl.range(block * BLOCK, words, blocks * BLOCK):
        at = start + tl.arange(0, BLOCK)
        low = tl.zeros([BLOCK], tl.float32)
        high = tl.zeros([BLOCK], tl.float32)
        for source in tl.static_range(WORLD):
            theirs = _at(buffers, source, tl.int32) + turn
            got = tl.load(theirs + at, mask=at < words, other=0, volatile=True)
            low += _low(got)
            high += _high(got)
        tl.store(x + at, _packed(low + late, high + late), mask=at < words)
    tl.store(epochs + block, epoch)


@triton.jit
def _two_shot(buffers, flags, epochs, words, share, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    epoch = tl.load(epochs + block)
    late = _meet(flags, block, epoch + 1, RANK, WORLD)
    end = tl.minimum((RANK + 1) * share, words)
    for start in tl.range(RANK * share + block * BLOCK, end, blocks * BLOCK):
        at = start + tl.arange(0, BLOCK)
        low = tl.zeros([BLOCK], tl.float32)
        high = tl.zeros([BLOCK], tl.float32)
        for source in tl.static_range(WORLD):
            theirs = _at(buffers, source, tl.int32)
            got = tl.load(theirs + at, mask=at < end, other=0, volatile=True)
            low += _low(got)
            high += _high(got)
        total = _packed(low + late, high + late)
        for step in tl.static_range(WORLD):
            theirs = _at(buffers, (RANK + step) % WORLD, tl.int32)
            tl.store(theirs + at, total, mask=at < end)
    _meet(flags, block, epoch + 2, RANK, WORLD)
    tl.store(epochs + block, epoch + 2)


class Peers:
    """What a kernel and its namesakes share: rank, world, addresses, counters. `allocate` is a collective."""

    def __init__(self, rank: int, world: int, blocks: int, device: torch.device, allocate: Allocate) -> None:
        self.rank, self.world, self.blocks, self.device = rank, world, blocks, device
        self.allocate, self.kept = allocate, []  # type: tuple[Allocate, list[Any]]
        self.epochs = torch.zeros(blocks, dtype=torch.int32, device=device)

    def mapped(self, elements: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(own tensor of zeros, every rank's address of it as an int64 tensor on the device)."""
        own, addresses, kept = self.allocate(elements, dtype, self.device)
        self.kept.append((own, kept))
        return own, torch.tensor(addresses, dtype=torch.int64, device=self.device)

    def flags(self) -> torch.Tensor:
        """Addresses of every rank's counters, one for each block and source."""
        return self.mapped(self.blocks * self.world, torch.int32)[1]


def words_of(elements: int, dtype: torch.dtype) -> int:
    """int32 words of a tensor: two bfloat16 each."""
    if dtype != torch.bfloat16 or elements % 2:
        raise NotImplementedError(f"{elements} x {dtype}: these kernels take an even number of bfloat16")
    return elements // 2


def push(
    rank: int, world: int, x: torch.Tensor, allocate: Allocate, block: int = PUSH_WORDS, warps: int = PUSH_WARPS,
) -> Call:  # fmt: skip
    """call(): x (bfloat16, contiguous) becomes the sum over ranks. Made and called by every rank alike."""
    words = words_of(x.numel(), x.dtype)
    blocks = triton.cdiv(words, block)
    if blocks > PUSH_MOST_BLOCKS:
        raise NotImplementedError(f"push: for latency, taken up to {4 * PUSH_MOST_BLOCKS * block // 2**10} KiB")
    peers = Peers(rank, world, blocks, x.device, allocate)
    stride = blocks * block
    _, inboxes = peers.mapped(TURNS * world * stride, torch.int64)
    x_words = x.view(torch.int32)

    def call() -> None:
        _push[(blocks,)](
            x_words, inboxes, peers.epochs, words, stride, RANK=rank, WORLD=world, BLOCK=block, num_warps=warps
        )

    call.peers = peers  # type: ignore[attr-defined]
    return call


def pull(
    rank: int, world: int, x: torch.Tensor, allocate: Allocate, block: int = PULL_WORDS, warps: int = PULL_WARPS,
    most_blocks: int = PULL_BLOCKS,
) -> Call:  # fmt: skip
    """call(): as push's."""
    words = words_of(x.numel(), x.dtype)
    tiles = triton.cdiv(words, block)
    peers = Peers(rank, world, min(tiles, most_blocks), x.device, allocate)
    stride = tiles * block
    _, buffers = peers.mapped(TURNS * stride, torch.int32)
    flags = peers.flags()
    x_words = x.view(torch.int32)

    def call() -> None:
        _pull[(peers.blocks,)](
            x_words, buffers, flags, peers.epochs, words, stride, RANK=rank, WORLD=world, BLOCK=block, num_warps=warps
        )

    call.peers = peers  # type: ignore[attr-defined]
    return call


def two_shot(
    rank: int, world: int, elements: int, device: torch.device, allocate: Allocate, block: int = TWO_SHOT_WORDS,
    warps: int = TWO_SHOT_WARPS, most_blocks: int = TWO_SHOT_BLOCKS,
) -> tuple[torch.Tensor, Call]:  # fmt: skip
    """(x, call): x (elements,) bfloat16 is mapped by every rank; call() makes it the sum over ranks."""
    words = words_of(elements, torch.bfloat16)
    share = triton.cdiv(triton.cdiv(words, world), block) * block
    peers = Peers(rank, world, min(share // block, most_blocks), device, allocate)
    x, buffers = peers.mapped(elements, torch.bfloat16)
    flags = peers.flags()

    def call() -> None:
        _two_shot[(peers.blocks,)](
            buffers, flags, peers.epochs, words, share, RANK=rank, WORLD=world, BLOCK=block, num_warps=warps
        )

    call.peers = peers  # type: ignore[attr-defined]
    return x, call

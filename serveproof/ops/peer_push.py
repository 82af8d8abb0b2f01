"""The push all-reduce of peer_all_reduce for tensors of any size up to a largest, through one inbox: an engine's.

Sizes may follow one another as they like: a block's turn and number are its own, and a word that a smaller call left
alone is older than any number that is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton

from serveproof.ops.peer_all_reduce import (
    PUSH_MOST_BLOCKS,
    PUSH_WARPS,
    PUSH_WORDS,
    TURNS,
    Allocate,
    Peers,
    _push,
    words_of,
)


def push_any(
    rank: int, world: int, most_elements: int, device: torch.device, allocate: Allocate, block: int = PUSH_WORDS,
    warps: int = PUSH_WARPS,
) -> Callable[[torch.Tensor], None]:  # fmt: skip
    """call(x): contiguous bfloat16 x of at most most_elements becomes the sum over ranks. Made and called alike."""
    blocks = triton.cdiv(words_of(most_elements, torch.bfloat16), block)
    if blocks > PUSH_MOST_BLOCKS:
        raise NotImplementedError(f"push: for latency, taken up to {4 * PUSH_MOST_BLOCKS * block // 2**10} KiB")
    peers = Peers(rank, world, blocks, device, allocate)
    stride = blocks * block
    _, inboxes = peers.mapped(TURNS * world * stride, torch.int64)

    def call(x: torch.Tensor) -> None:
        words = words_of(x.numel(), x.dtype)
        _push[(triton.cdiv(words, block),)](
            x.view(-1).view(torch.int32), inboxes, peers.epochs, words, stride, RANK=rank, WORLD=world, BLOCK=block,
            num_warps=warps,
        )  # fmt: skip

    call.peers = peers  # type: ignore[attr-defined]
    return call

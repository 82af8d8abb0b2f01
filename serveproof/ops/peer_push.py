"""The push all-reduce of peer_all_reduce for tensors of any size up to a largest, through one inbox: an engine's.

Sizes may follow one another as they like: a block's turn and number are its own, and a word that a smaller call left
alone is older than any number that is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from serveproof.ops.gemv import is_cuda_90
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


@triton.jit
def _push_early(
    x, inboxes, epochs, words, stride, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_push`, launched beside the end of the kernel before it; the next one loads its weights while this one waits for
    its peers (programmatic dependent launch, sm_90)."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    _push(x, inboxes, epochs, words, stride, RANK, WORLD, BLOCK)


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
    kernel, launch = (_push_early, {"launch_pdl": True}) if is_cuda_90(peers.epochs) else (_push, {})

    def call(x: torch.Tensor) -> None:
        words = words_of(x.numel(), x.dtype)
        kernel[(triton.cdiv(words, block),)](
            x.view(-1).view(torch.int32), inboxes, peers.epochs, words, stride, RANK=rank, WORLD=world, BLOCK=block,
            num_warps=warps, **launch,
        )  # fmt: skip

    call.peers = peers  # type: ignore[attr-defined]
    return call

"""Blocks of an engine's KV cache as rows of bytes, and sums over them that tell one wrong byte, or one moved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from serveproof.engine.engine import Pending, Runner
from serveproof.engine.kv_cache import KVCache
from serveproof.engine.sequence import Step


def bytes_of(cache: KVCache, blocks: list[int]) -> Tensor:
    """uint8 [n, bytes of a block over all layers, keys and values]; a copy."""
    picked = cache.pool[:, :, blocks].movedim(2, 0).contiguous()
    return picked.flatten(1).view(torch.uint8)


def write_bytes(cache: KVCache, blocks: list[int], data: Tensor) -> None:
    """The inverse of `bytes_of`."""
    pool = cache.pool
    shape = (len(blocks), pool.shape[0], pool.shape[1], *pool.shape[3:])
    pool[:, :, blocks] = data.contiguous().view(pool.dtype).view(shape).movedim(0, 2)


def block_bytes(cache: KVCache) -> int:
    """Bytes of a block over all layers."""
    return cache.pool[:, :, 0].numel() * cache.pool.itemsize


def checksums(data: Tensor) -> Tensor:
    """int64 [n]: each row's 8-byte words times odd numbers that differ by place, summed modulo 2^64.

    Any one changed word changes its row's sum (an odd factor has an inverse modulo 2^64), and so do two that changed
    places, but for a chance of about 2^-60.
    """
    padded = torch.nn.functional.pad(data, (0, -data.shape[1] % 8)).contiguous().view(torch.int64)
    place = torch.arange(padded.shape[1], device=data.device, dtype=torch.int64)
    # the golden ratio's odd 64-bit constant, as in Knuth's multiplicative hashing (TAOCP 3, 6.4)
    return (padded * (2 * place * -7046029254386353131 + 1)).sum(1)


@dataclass
class Written:
    """A runner that keeps which blocks the steps since the last look have written."""

    runner: Runner
    page_size: int
    blocks: set[int] = field(default_factory=set)

    def launch(self, step: Step) -> Pending:
        """Launch, and note the blocks of every chunk's tokens."""
        for chunk in step.chunks:
            first, last = chunk.start // self.page_size, (chunk.context + len(chunk.drafts) - 1) // self.page_size
            self.blocks.update(chunk.sequence.blocks[first : last + 1])
        self.blocks.update(step.clean)
        self.blocks.update(block for _, block in step.swap_in)
        return self.runner.launch(step)

    def taken(self) -> list[int]:
        """The blocks, in order; they are forgotten."""
        found = sorted(self.blocks)
        self.blocks.clear()
        return found

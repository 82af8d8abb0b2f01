"""Tensor parallelism: which share of a matrix a rank holds, and the two collectives that put results together.

Column split of what comes first in a block, row split of what ends it, one all-reduce each: Megatron-LM (Shoeybi et al.
2019, arXiv:1909.08053). Embedding and LM head are split by vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from serveproof.errors import UserError
from serveproof.nvtx_ranges import ranged


@dataclass(frozen=True)
class Group:
    """A rank of `world`, in torch.distributed's default group."""

    rank: int = 0
    world: int = 1

    def share(self, count: int) -> int:
        """A rank's share of `count` heads, columns or words; `check` has seen to it that it divides."""
        return count // self.world

    @partial(ranged, "all_reduce")
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, at every rank."""
        if self.world == 1:
            return x
        dist.all_reduce(x)
        return x

    def all_gather(self, x_NV: Tensor) -> Tensor:
        """Every rank's columns side by side, in rank order."""
        if self.world == 1:
            return x_NV
        parts = [torch.empty_like(x_NV) for _ in range(self.world)]
        dist.all_gather(parts, x_NV.contiguous())
        return torch.cat(parts, dim=-1)


SINGLE = Group()


def check(counts: dict[str, int], world: int) -> None:
    """Raise UserError, naming the field, unless every count divides by the number of ranks."""
    for name, count in counts.items():
        if count % world:
            raise UserError(f"{name} {count} does not divide by {world} ranks; start a number of ranks that divides it")

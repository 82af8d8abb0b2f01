"""Tensor parallelism: which share of a matrix a rank holds, and the two collectives that put results together.

Column split of what comes first in a block, row split of what ends it, one all-reduce each: Megatron-LM (Shoeybi et al.
2019, arXiv:1909.08053). Embedding and LM head are split by vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from serveproof.errors import UserError
from serveproof.nvtx_ranges import ranged

# sum(x): x summed over the ranks, in place or not, or None where this way doesn't take such an x
Sum = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Group:
    """A rank of `world`, in torch.distributed's default group.

    expert_parallel: a rank holds some experts whole, not a share of every expert's width. direct: a faster sum for
    some tensors (serveproof.ops.peer_all_reduce), asked before torch.distributed.
    """

    rank: int = 0
    world: int = 1
    expert_parallel: bool = False
    direct: Sum | None = None

    def share(self, count: int) -> int:
        """A rank's share of `count` heads, columns or words; `check` has seen to it that it divides.

        Of KV heads fewer than ranks it is one, which other ranks hold too.
        """
        return max(count // self.world, 1)

    def piece(self, pieces: int) -> int:
        """Which of a matrix's `pieces` a rank holds: neighbours hold the same one where there are more ranks."""
        return self.rank * pieces // self.world

    def least(self, count: int) -> int:
        """The smallest of every rank's counts, at every rank."""
        if self.world == 1:
            return count
        found = torch.tensor(count)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    @partial(ranged, "all_reduce")
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, at every rank."""
        if self.world == 1:
            return x
        summed = None if self.direct is None else self.direct(x)
        if summed is not None:
            return summed
        dist.all_reduce(x)
        return x

    def all_gather(self, x_NV: Tensor) -> Tensor:
        """Every rank's columns side by side, in rank order."""
        if self.world == 1:
            return x_NV
        if self.direct is not None:
            # a sum of zeros and one rank's numbers is those numbers
            width = x_NV.shape[-1]
            whole = x_NV.new_zeros((*x_NV.shape[:-1], self.world * width))
            whole[..., self.rank * width : (self.rank + 1) * width] = x_NV
            summed = self.direct(whole)
            if summed is not None:
                return summed
        parts = [torch.empty_like(x_NV) for _ in range(self.world)]
        dist.all_gather(parts, x_NV.contiguous())
        return torch.cat(parts, dim=-1)


SINGLE = Group()
# torch 2.13 has new names for these two, and warns of the old
gather_rows: Callable[..., object] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
scatter_sums: Callable[..., object] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def check(counts: dict[str, int], world: int) -> None:
    """Raise UserError, naming the field, unless every count divides by the number of ranks."""
    for name, count in counts.items():
        if count % world:
            raise UserError(f"{name} {count} does not divide by {world} ranks; start a number of ranks that divides it")

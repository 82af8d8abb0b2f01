"""The engine's all-reduce over symmetric memory: the push kernel of the pair symmetric_memory_allreduce, any size up to
its largest, the same buffers for all; what is larger, or of another dtype, goes through torch.distributed."""

from __future__ import annotations

import torch
from torch import Tensor

from serveproof.distributed.group import Ranks
from serveproof.engine.parallel import Sum

LARGEST = 2**18  # elements: 512 KiB, up to which push was the fastest on two H200s (docs/pairs)


def peers_reach_each_other(ranks: Ranks) -> str:
    """'' where every GPU of this node maps every other's memory; else what is missing."""
    if ranks.device.type != "cuda":
        return "symmetric memory is mapped between GPUs: it doesn't exist on a CPU"
    if ranks.world == 1:
        return "one GPU has no peer"
    if ranks.nodes > 1:
        return "ranks are on several machines: their GPUs don't map each other's memory"
    apart = [
        peer
        for peer in range(ranks.local_world)
        if peer != ranks.local and not torch.cuda.can_device_access_peer(ranks.local, peer)
    ]
    found = [one for one in ranks.gathered(f"GPU {ranks.local} can't reach GPU {apart}" if apart else "") if one]
    return "; ".join(found)


def direct_sum(ranks: Ranks, dtype: torch.dtype) -> tuple[Sum | None, str]:
    """(the sum, what sums: a collective to make); None for another dtype than bfloat16, and where the GPUs don't map
    each other's memory."""
    wrong = "the push kernel sums bfloat16 alone" if dtype != torch.bfloat16 else ""
    missing = wrong or peers_reach_each_other(ranks)
    if missing:
        return None, f"all-reduce by {ranks.backend}: {missing}"
    from serveproof.ops import peer_memory, peer_push

    push = peer_push.push_any(ranks.rank, ranks.world, LARGEST, ranks.device, peer_memory.allocate)

    def summed(x: Tensor) -> Tensor | None:
        if x.dtype != torch.bfloat16 or x.numel() > LARGEST or x.numel() % 2 or not x.is_contiguous():
            return None
        push(x)
        return x

    return summed, f"all-reduce by push over symmetric memory up to {2 * LARGEST // 2**10} KiB, then {ranks.backend}"

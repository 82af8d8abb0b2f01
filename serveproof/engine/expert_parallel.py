"""Experts over ranks: rows of tokens travel to the rank that holds their expert, and back.

E experts of which a rank holds E / world, N tokens of this rank, C choices, R rows (token, choice), D hidden, F width.
The exchange is GShard's (Lepikhin et al. 2020, arXiv:2006.16668) without its capacity: every row is computed, none is
dropped, whatever the imbalance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from serveproof.engine.parallel import Group, gather_rows, scatter_sums
from serveproof.ops.expert_rows import by_expert, grouped_mm
from serveproof.ops.linear import linear

# (rows sorted by expert, gate_up, down, where each expert's rows end) -> rows
Batching = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def experts_in_one(x_RD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """SwiGLU of each expert over its rows by torch's grouped product; expert e's rows end at ends_E[e]."""
    grouped, ends = grouped_mm(), ends_E.int()
    gate_RF, up_RF = grouped(x_RD, gate_up_EFD.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out_RD: Tensor = grouped(F.silu(gate_RF) * up_RF, down_EDF.transpose(1, 2), offs=ends)
    return out_RD


def experts_one_by_one(x_RD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """The same with a product an expert: the host must know how many rows each has."""
    y_RD = torch.empty_like(x_RD)
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            gate_RF, up_RF = linear(x_RD[start:end], gate_up_EFD[expert]).chunk(2, dim=-1)
            y_RD[start:end] = linear(F.silu(gate_RF) * up_RF, down_EDF[expert])
        start = end
    return y_RD


def experts_grouped(x_RD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """What the engine serves with: in one on CUDA in bfloat16, which is what torch's grouped product takes there."""
    in_one = x_RD.is_cuda and x_RD.dtype == torch.bfloat16
    return (experts_in_one if in_one else experts_one_by_one)(x_RD, gate_up_EFD, down_EDF, ends_E)


def _exchange(x_RD: Tensor, sends: list[int], receives: list[int]) -> Tensor:
    """Rows in rank order out, rows in rank order back."""
    out = x_RD.new_empty((sum(receives), x_RD.shape[1]))
    dist.all_to_all_single(out, x_RD.contiguous(), receives, sends)
    return out


def dispatched(
    x_ND: Tensor,
    gates_NC: Tensor,
    ids_NC: Tensor,
    gate_up_LFD: Tensor,
    down_LDF: Tensor,
    group: Group,
    batching: Batching = experts_grouped,
    exchange: Callable[[Tensor, list[int], list[int]], Tensor] = _exchange,
) -> Tensor:
    """[N, D]: this rank's tokens through their experts, wherever those are; a collective.

    The host waits once, for the counts that say how many rows come. Rows arrive sorted by rank and then by expert, and
    are brought together by expert for `batching`.
    """
    world, local = group.world, len(gate_up_LFD)
    order_R, token_R, ends_E = by_expert(ids_NC, world * local)
    counts_WL = ends_E.diff(prepend=ends_E.new_zeros(1)).view(world, local)
    arriving_WL = torch.empty_like(counts_WL)
    dist.all_to_all_single(arriving_WL, counts_WL.contiguous())
    both = torch.stack((counts_WL.sum(1), arriving_WL.sum(1))).tolist()
    sends, receives = both
    rows_RD = exchange(x_ND[token_R], sends, receives)
    expert_of_R = torch.arange(local, device=x_ND.device).repeat(world).repeat_interleave(arriving_WL.flatten())
    sorted_R, place_R = expert_of_R.sort(stable=True)
    ends_L = torch.searchsorted(sorted_R, torch.arange(local, device=x_ND.device), right=True)
    y_RD = torch.empty_like(rows_RD)
    if len(rows_RD):
        y_RD[place_R] = batching(rows_RD[place_R], gate_up_LFD, down_LDF, ends_L)
    back_RD = exchange(y_RD, receives, sends)
    gated_RD = back_RD * gates_NC.flatten()[order_R, None].to(x_ND.dtype)
    return torch.zeros_like(x_ND).index_add_(0, token_R, gated_RD)


def every_token(
    x_ND: Tensor,
    gates_NC: Tensor,
    ids_NC: Tensor,
    gate_up_LFD: Tensor,
    down_LDF: Tensor,
    group: Group,
    batching: Batching = experts_grouped,
) -> Tensor:
    """[N, D] where every rank has all N tokens, as after tensor-parallel attention: each rank sends an equal share of
    them through the experts, and the shares are put together again. The last ranks' shares may be short or empty."""
    share = -(-len(x_ND) // group.world)
    own = slice(min(group.rank * share, len(x_ND)), min((group.rank + 1) * share, len(x_ND)))
    done_ND = dispatched(x_ND[own], gates_NC[own], ids_NC[own], gate_up_LFD, down_LDF, group, batching)
    padded_SD = x_ND.new_zeros((share, x_ND.shape[1]))
    padded_SD[: len(done_ND)] = done_ND
    whole = x_ND.new_empty((group.world * share, x_ND.shape[1]))
    gather_rows(whole, padded_SD)
    return whole[: len(x_ND)]


def replicated(
    x_ND: Tensor,
    route: Callable[[Tensor], tuple[Tensor, Tensor]],
    gate_up_LFD: Tensor,
    down_LDF: Tensor,
    group: Group,
    batching: Batching = experts_grouped,
) -> Tensor:
    """[N, D]: the other placement of the router. Every rank gets all ranks' tokens, routes them all, computes the rows
    of its own experts, and the sums go back to the tokens' ranks. No counts are exchanged; N is equal on every rank."""
    world, local = group.world, len(gate_up_LFD)
    all_MD = x_ND.new_empty((world * len(x_ND), x_ND.shape[1]))
    gather_rows(all_MD, x_ND.contiguous())
    gates_MC, ids_MC = route(all_MD)
    order_R, token_R, ends_E = by_expert(ids_MC, world * local)
    first, last = group.rank * local, (group.rank + 1) * local
    start = int(ends_E[first - 1]) if first else 0
    mine = slice(start, int(ends_E[last - 1]))
    sums_MD = torch.zeros_like(all_MD)
    if mine.stop > mine.start:
        y_RD = batching(all_MD[token_R[mine]], gate_up_LFD, down_LDF, ends_E[first:last] - start)
        gated_RD = y_RD * gates_MC.flatten()[order_R[mine], None].to(x_ND.dtype)
        sums_MD.index_add_(0, token_R[mine], gated_RD)
    out_ND = torch.empty_like(x_ND)
    scatter_sums(out_ND, sums_MD)
    return out_ND

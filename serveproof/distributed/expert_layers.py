"""One layer of experts under a traffic: where the router stands, how rows are batched, and what the exchange takes.

router placement. at_tokens: each rank routes its own tokens, and only chosen rows travel, by all-to-all. at_experts:
every token travels to every rank, is routed there, and sums come back: no counts to exchange, more bytes. At one rank
both are the same layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt

import torch
import torch.distributed as dist
from torch import Tensor

from serveproof.distributed.collectives import timed
from serveproof.distributed.equality import relative_error
from serveproof.distributed.group import Ranks
from serveproof.distributed_records import ExpertLayerPoint
from serveproof.engine import expert_parallel
from serveproof.engine.expert_parallel import Batching
from serveproof.engine.moe import SparseMLP
from serveproof.engine.parallel import gather_rows, scatter_sums
from serveproof.ops import moe_workload
from serveproof.ops.expert_rows import by_expert
from serveproof.results import Estimate

BATCHINGS: dict[str, Batching] = {
    "grouped": expert_parallel.experts_in_one,
    "one by one": expert_parallel.experts_one_by_one,
}


@dataclass(frozen=True)
class Traffic:
    """The tokens of all ranks, the logits that send them where the traffic says, and this rank's part of both."""

    kind: str
    ids_MC: Tensor
    logits_ME: Tensor
    x_ND: Tensor
    own: slice


def traffic_of(kind: str, ranks: Ranks, layer: SparseMLP, tokens: int, dtype: torch.dtype, seed: int) -> Traffic:
    """`tokens` a rank, the same on every rank for the same seed but for x, which is the rank's own."""
    ids_MC = moe_workload.assign(kind, tokens * ranks.world, layer.experts.count, layer.experts.per_token, seed)
    logits_ME = moe_workload.logits_of(ids_MC, layer.experts.count, torch.Generator().manual_seed(seed))
    generator = torch.Generator(device=ranks.device).manual_seed(seed + 17 * ranks.rank)
    hidden = layer.gate.in_features
    x_ND = torch.randn(tokens, hidden, generator=generator, device=ranks.device, dtype=dtype)
    own = slice(ranks.rank * tokens, (ranks.rank + 1) * tokens)
    return Traffic(kind, ids_MC, logits_ME.to(ranks.device), x_ND, own)


def routed(layer: SparseMLP, x_ND: Tensor, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Gates and ids: the router's product is computed, and its outcome replaced by the traffic's."""
    logits_NE = logits_NE + 0 * layer.gate(x_ND).float()
    gates_NC, ids_NC = logits_NE.softmax(-1).topk(layer.experts.per_token, dim=-1)
    return (gates_NC / gates_NC.sum(-1, keepdim=True) if layer.experts.normalised else gates_NC), ids_NC


def on_one_rank(layer: SparseMLP, traffic: Traffic, batching: Batching) -> Tensor:
    """This rank's tokens through all experts, held here."""
    x_ND = traffic.x_ND
    gates_NC, ids_NC = routed(layer, x_ND, traffic.logits_ME[traffic.own])
    order_R, token_R, ends_E = by_expert(ids_NC, layer.experts.count)
    y_RD = batching(x_ND[token_R], layer.gate_up, layer.down, ends_E)
    y_RD = y_RD * gates_NC.flatten()[order_R, None].to(x_ND.dtype)
    return torch.zeros_like(x_ND).index_add_(0, token_R, y_RD)


def placements(ranks: Ranks, layer: SparseMLP, traffic: Traffic) -> dict[str, Callable[[Batching], Tensor]]:
    """The layer by each placement, given a batching."""
    if ranks.world == 1:
        return {"one rank": lambda batching: on_one_rank(layer, traffic, batching)}
    share = layer.experts.count // ranks.world
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    gate_up, down = layer.gate_up[mine], layer.down[mine]

    def at_tokens(batching: Batching) -> Tensor:
        gates_NC, ids_NC = routed(layer, traffic.x_ND, traffic.logits_ME[traffic.own])
        return expert_parallel.dispatched(traffic.x_ND, gates_NC, ids_NC, gate_up, down, ranks.group, batching)

    def at_experts(batching: Batching) -> Tensor:
        def route(x_MD: Tensor) -> tuple[Tensor, Tensor]:
            return routed(layer, x_MD, traffic.logits_ME)

        return expert_parallel.replicated(traffic.x_ND, route, gate_up, down, ranks.group, batching)

    return {"at_tokens": at_tokens, "at_experts": at_experts}


def rows_of(traffic: Traffic, experts: int, world: int) -> tuple[float, float, Tensor]:
    """(imbalance over experts, over ranks, rows from rank to rank [world, world])."""
    rows_E = moe_workload.load_of(traffic.ids_MC, experts).rows_E.float()
    by_rank = rows_E.view(world, -1).sum(1)
    tokens = len(traffic.ids_MC) // world
    source = torch.arange(len(traffic.ids_MC)).div(tokens, rounding_mode="floor")[:, None].expand_as(traffic.ids_MC)
    target = traffic.ids_MC.div(experts // world, rounding_mode="floor")
    rows_WW = torch.bincount((source * world + target).flatten(), minlength=world * world).view(world, world)
    return float(rows_E.max() / rows_E.mean()), float(by_rank.max() / by_rank.mean()), rows_WW


def exchange_alone(ranks: Ranks, placement: str, traffic: Traffic, rows_WW: Tensor) -> Callable[[], None]:
    """What moves rows in a layer, and nothing else."""
    x_ND = traffic.x_ND
    if placement == "at_tokens":
        sends, receives = rows_WW[ranks.rank].tolist(), rows_WW[:, ranks.rank].tolist()
        out, back = x_ND.new_zeros((sum(sends), x_ND.shape[1])), x_ND.new_zeros((sum(receives), x_ND.shape[1]))

        def both_ways() -> None:
            dist.all_to_all_single(back, out, receives, sends)
            dist.all_to_all_single(out, back, sends, receives)

        return both_ways
    everyone = x_ND.new_zeros((ranks.world * len(x_ND), x_ND.shape[1]))

    def gather_and_scatter() -> None:
        gather_rows(everyone, x_ND)
        scatter_sums(torch.empty_like(x_ND), everyone)

    return gather_and_scatter


@torch.inference_mode()
def measured(ranks: Ranks, layer: SparseMLP, traffic: Traffic, samples: int, calls: int) -> list[ExpertLayerPoint]:
    """Every placement with every batching, each with its error against all experts on one rank."""
    expected = on_one_rank(layer, traffic, expert_parallel.experts_one_by_one)
    imbalance, rank_imbalance, rows_WW = rows_of(traffic, layer.experts.count, ranks.world)
    points = []
    for placement, layer_by in placements(ranks, layer, traffic).items():
        exchange_ms = 0.0
        if ranks.world > 1:
            exchange_ms = timed(ranks, exchange_alone(ranks, placement, traffic, rows_WW), samples, calls).value
        for name, batching in BATCHINGS.items():
            error = max(ranks.gathered(relative_error(layer_by(batching), expected)))
            taken = timed(ranks, lambda run=layer_by, how=batching: run(how), samples, calls)  # type: ignore[misc]
            points.append(
                ExpertLayerPoint(
                    traffic=traffic.kind,
                    placement=placement,
                    batching=name,
                    imbalance=imbalance,
                    rank_imbalance=rank_imbalance,
                    time=taken,
                    exchange_share=exchange_ms / taken.value,
                    tokens_per_s=1e3 * len(traffic.ids_MC) / taken.value,
                    error=error,
                )
            )
    return points


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """above / below of two times taken apart: their logarithms' half-widths add as squares."""
    half = sqrt(log(above.high / above.value) ** 2 + log(below.high / below.value) ** 2)
    value = above.value / below.value
    return Estimate(value, value * exp(-half), value * exp(half), "x")

"""A decoder with experts served under a traffic that the router is made to follow, and rows counted where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from serveproof.engine.expert_parallel import Batching
from serveproof.engine.model import Llama
from serveproof.engine.moe import SparseMLP
from serveproof.ops import moe_workload

TABLE = 4096


@dataclass
class Counted:
    """chosen_E: rows by expert as routers chose, over all layers; computed: rows that went through experts here."""

    chosen_E: Tensor
    computed: Tensor


def layers_of(model: Llama) -> list[SparseMLP]:
    """The model's layers of experts."""
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, SparseMLP)]


def follow(model: Llama, kind: str, seed: int, device: torch.device) -> Counted:
    """Make every layer's router send tokens as the traffic says, one row of a table after another; count rows.

    The table and its place are the same on all ranks. Gates stay the router's own softmax at the experts chosen.
    """
    layers = layers_of(model)
    experts = layers[0].experts
    counted = Counted(
        torch.zeros(experts.count, dtype=torch.int64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    )
    for number, mlp in enumerate(layers):
        table_TC = moe_workload.assign(kind, TABLE, experts.count, experts.per_token, seed + number).to(device)
        setattr(mlp, "route", _router(mlp, table_TC, counted))  # noqa: B010 (a method for mypy)
        mlp.batching = _counting(mlp.batching, counted)
    return counted


def _router(mlp: SparseMLP, table_TC: Tensor, counted: Counted) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    place = 0

    def route(x_ND: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal place
        at_N = (torch.arange(len(x_ND), device=x_ND.device) + place) % TABLE
        place = (place + len(x_ND)) % TABLE
        ids_NC = table_TC[at_N]
        counted.chosen_E += torch.bincount(ids_NC.flatten(), minlength=len(counted.chosen_E))
        gates_NC = mlp.gate(x_ND).float().softmax(-1).gather(1, ids_NC)
        return (gates_NC / gates_NC.sum(-1, keepdim=True) if mlp.experts.normalised else gates_NC), ids_NC

    return route


def _counting(batching: Batching, counted: Counted) -> Batching:
    """Counts the rows that the experts' ends cover: a row beyond them would be left out."""

    def counting(x_RD: Tensor, gate_up: Tensor, down: Tensor, ends_E: Tensor) -> Tensor:
        counted.computed += ends_E[-1].clamp(max=len(x_RD))
        return batching(x_RD, gate_up, down, ends_E)

    return counting

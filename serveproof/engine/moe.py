"""A mixture-of-experts feed-forward: Mixtral's and Qwen3-MoE's router, and SwiGLU experts.

Mixtral: Jiang et al. 2024, arXiv:2401.04088. E experts, R rows (token, choice), F width of an expert; D hidden.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from serveproof.engine import expert_parallel
from serveproof.engine.config import Experts
from serveproof.engine.expert_parallel import Batching, experts_grouped
from serveproof.engine.parallel import Group
from serveproof.nvtx_ranges import ranged
from serveproof.ops.expert_rows import by_expert
from serveproof.ops.linear import Linear


class SparseMLP(nn.Module):
    """Experts' weights stacked: gate_up [E, 2F, D], down [E, D, F].

    A rank holds a share of every expert's width, or, where the group is expert parallel, a share of the experts.
    """

    def __init__(self, hidden_size: int, experts: Experts, group: Group) -> None:
        super().__init__()
        count, width = experts.count, experts.intermediate_size
        if group.expert_parallel:
            count = group.share(count)
        else:
            width = group.share(width)
        self.experts, self.group = experts, group
        self.batching: Batching = experts_grouped
        self.gate = Linear(hidden_size, experts.count)
        self.gate_up = nn.Parameter(torch.empty(count, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(count, hidden_size, width))

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(gates float32, expert ids), both [N, choices]: the largest of a softmax over all experts."""
        gates_NC, ids_NC = self.gate(x_ND).float().softmax(-1).topk(self.experts.per_token, dim=-1)
        if self.experts.normalised:
            gates_NC = gates_NC / gates_NC.sum(-1, keepdim=True)
        return gates_NC, ids_NC

    @partial(ranged, "mlp")
    def forward(self, x_ND: Tensor) -> Tensor:
        gates_NC, ids_NC = self.route(x_ND)
        if self.group.expert_parallel and self.group.world > 1:
            return expert_parallel.every_token(
                x_ND, gates_NC, ids_NC, self.gate_up, self.down, self.group, self.batching
            )
        order_R, token_R, ends_E = by_expert(ids_NC, self.experts.count)
        y_RD = self.batching(x_ND[token_R], self.gate_up, self.down, ends_E)
        y_RD = y_RD * gates_NC.flatten()[order_R, None].to(x_ND.dtype)
        return self.group.all_reduce(torch.zeros_like(x_ND).index_add_(0, token_R, y_RD))

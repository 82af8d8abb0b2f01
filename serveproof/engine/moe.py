"""A mixture-of-experts feed-forward: Mixtral's and Qwen3-MoE's router, and SwiGLU experts.

Mixtral: Jiang et al. 2024, arXiv:2401.04088. E experts, R rows (token, choice), F width of an expert; D hidden.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serveproof.engine.config import Experts
from serveproof.engine.parallel import Group
from serveproof.nvtx_ranges import ranged
from serveproof.ops.expert_rows import by_expert, grouped_mm


class SparseMLP(nn.Module):
    """Experts' weights stacked: gate_up [E, 2F, D], down [E, D, F]; a rank holds a share of every expert's width."""

    def __init__(self, hidden_size: int, experts: Experts, group: Group) -> None:
        super().__init__()
        width = group.share(experts.intermediate_size)
        self.experts, self.group = experts, group
        self.gate = nn.Linear(hidden_size, experts.count, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts.count, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(experts.count, hidden_size, width))

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(gates float32, expert ids), both [N, choices]: the largest of a softmax over all experts."""
        gates_NC, ids_NC = self.gate(x_ND).float().softmax(-1).topk(self.experts.per_token, dim=-1)
        if self.experts.normalised:
            gates_NC = gates_NC / gates_NC.sum(-1, keepdim=True)
        return gates_NC, ids_NC

    @partial(ranged, "mlp")
    def forward(self, x_ND: Tensor) -> Tensor:
        gates_NC, ids_NC = self.route(x_ND)
        order_R, token_R, ends_E = by_expert(ids_NC, self.experts.count)
        y_RD = experts_grouped(x_ND[token_R], self.gate_up, self.down, ends_E)
        y_RD = y_RD * gates_NC.flatten()[order_R, None].to(x_ND.dtype)
        return self.group.all_reduce(torch.zeros_like(x_ND).index_add_(0, token_R, y_RD))


def experts_grouped(x_RD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """SwiGLU of each expert over its rows: rows are sorted by expert, expert e's end at ends_E[e]."""
    if x_RD.is_cuda:
        grouped, ends = grouped_mm(), ends_E.int()
        gate_RF, up_RF = grouped(x_RD, gate_up_EFD.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        out_RD: Tensor = grouped(F.silu(gate_RF) * up_RF, down_EDF.transpose(1, 2), offs=ends)
        return out_RD
    y_RD = torch.empty_like(x_RD)
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            gate_RF, up_RF = F.linear(x_RD[start:end], gate_up_EFD[expert]).chunk(2, dim=-1)
            y_RD[start:end] = F.linear(F.silu(gate_RF) * up_RF, down_EDF[expert])
        start = end
    return y_RD

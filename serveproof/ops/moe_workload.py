"""Router traffic for mixture-of-experts kernels and servers: which experts each token goes to, by kind and seed.

Real routers are skewed: training balances them over a corpus, not over a batch (Switch Transformer, arXiv 2101.03961,
section 2.2, drops what overflows an expert's capacity; Mixtral, arXiv 2401.04088, section 5, finds runs of tokens sent
to one expert). The four kinds here are shapes of that skew, not a fit to any trace: the exponent, the hot share and the
burst are assumptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

KINDS = ("uniform", "zipf", "bursty", "adversarial")
BURSTS = 16  # how often the hot experts change over the tokens of one bursty batch
HOT_SHARE, HOT_WEIGHT = 8, 8.0  # one expert in 8 is hot, and drawn 8 times as often
CHOSEN, SPREAD = 6.0, 1.0  # logits: chosen experts lie in [5, 7], all others in [-1, 1]


def assign(kind: str, tokens: int, experts: int, top_k: int, seed: int = 0, exponent: float = 1.0) -> torch.Tensor:
    """(tokens, top_k) int64: each token's experts, distinct, the same for the same arguments.

    uniform: every expert alike. zipf: the n-th hottest expert drawn in proportion to n^-exponent. bursty: a few hot
    experts, others from burst to burst. adversarial: all tokens to as few experts as top_k and one in 16 allow, the
    rest get none. ValueError names the argument that is wrong.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it can be {', '.join(KINDS)}")
    for name, value in (("tokens", tokens), ("experts", experts)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}; it must be from 1 to experts ({experts})")
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent is {exponent}; it must be finite and 0 or more")
    generator = torch.Generator().manual_seed(seed)
    order_E = torch.randperm(experts, generator=generator)
    weight_TE = torch.ones(tokens, experts)
    if kind == "zipf":
        weight_TE[:, order_E] = torch.arange(1, experts + 1).float() ** -exponent
    elif kind == "bursty":
        burst_T = torch.arange(tokens) * BURSTS // tokens
        hot = max(1, experts // HOT_SHARE)
        for burst in range(BURSTS):
            chosen = torch.randperm(experts, generator=generator)[:hot]
            rows = (burst_T == burst).nonzero()
            weight_TE[rows, chosen[None]] = HOT_WEIGHT
    elif kind == "adversarial":
        weight_TE.zero_()
        weight_TE[:, order_E[: max(top_k, experts // 16)]] = 1.0
    # Drawing without replacement by weight: the largest log-weights plus Gumbel noise (Kool et al., arXiv 1903.06059).
    gumbel_TE = -(-torch.rand(tokens, experts, generator=generator).clamp(1e-9, 1 - 1e-7).log()).log()
    return (weight_TE.log() + gumbel_TE).topk(top_k, dim=1).indices


def _check_ids(ids_TK: torch.Tensor, experts: int) -> None:
    """ValueError unless each row holds distinct experts from 0 to experts - 1."""
    if ids_TK.dtype != torch.int64 or ids_TK.dim() != 2 or not ids_TK.numel():
        raise ValueError(f"ids_TK is {ids_TK.dtype} {tuple(ids_TK.shape)}; it must be int64 (tokens, top_k), not empty")
    if int(ids_TK.min()) < 0 or int(ids_TK.max()) >= experts:
        raise ValueError(f"ids_TK reaches from {int(ids_TK.min())} to {int(ids_TK.max())}; experts is {experts}")
    if bool((ids_TK.sort(1).values.diff(dim=1) == 0).any()):
        raise ValueError("ids_TK names an expert twice for one token")


def logits_of(ids_TK: torch.Tensor, experts: int, generator: torch.Generator) -> torch.Tensor:
    """(tokens, experts) float32 router logits whose top_k are exactly `ids_TK`, whatever the generator's seed.

    ValueError where no logits could choose those ids: one twice for a token, or one that is no expert.
    """
    _check_ids(ids_TK, experts)
    device = generator.device
    logits_TE = (2 * torch.rand(ids_TK.shape[0], experts, generator=generator, device=device) - 1) * SPREAD
    return logits_TE.scatter_add(1, ids_TK.to(device), torch.full(ids_TK.shape, CHOSEN, device=device))


@dataclass(frozen=True)
class Load:
    """How a batch falls on the experts, those without rows included.

    imbalance: the busiest expert's rows over the mean. gini: 0 when all have as many, 1 - 1/experts when one has all.
    """

    rows_E: torch.Tensor
    active: int
    imbalance: float
    gini: float


def load_of(ids_TK: torch.Tensor, experts: int) -> Load:
    """Rows an expert gets, how many get any, and how uneven that is. ValueError for ids that are no experts."""
    _check_ids(ids_TK, experts)
    rows_E = torch.bincount(ids_TK.flatten(), minlength=experts)
    rank_E = 2 * torch.arange(1, experts + 1, device=rows_E.device) - experts - 1
    gini = float((rank_E * rows_E.sort().values).sum() / (experts * rows_E.sum()))
    return Load(rows_E, int((rows_E > 0).sum()), float(rows_E.max() / rows_E.float().mean()), gini)

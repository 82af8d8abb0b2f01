"""Choosing tokens from logits: penalties, temperature, top-k, top-p, min-p, seeds, log-probabilities.

A token is the argmax of log-probability plus Gumbel noise, which samples the distribution exactly (Gumbel-max trick).
The noise is a hash of (seed, position, token id): a request's tokens don't depend on what it was batched with. R rows
to sample, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serveproof.engine.sequence import SamplingParams

MASK = 0xFFFFFFFF
SPLITS = (64, 32, 16)


@dataclass
class Choice:
    """One row to sample: its request's parameters and seed, the position of the new token, and the tokens before it."""

    params: SamplingParams
    seed: int
    position: int
    history: list[int]


def greedy(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """(argmax [R] int64, whether the row is finite [R] bool): a NaN or an infinity shows in the maximum."""
    parts = next((count for count in SPLITS if logits_RV.shape[1] % count == 0), 1) if logits_RV.is_cuda else 1
    # By parts of the row first: one reduction over a row of 128 K leaves most of a GPU idle, 40 us on an H200.
    best_RP, places_RP = logits_RV.unflatten(1, (parts, -1)).max(-1)
    largest_R, part_R = best_RP.max(-1)
    tokens_R = part_R * (logits_RV.shape[1] // parts) + places_RP.gather(1, part_R[:, None])[:, 0]
    return tokens_R, torch.isfinite(largest_R)


def sample(logits_RV: Tensor, rows: list[Choice], fed_R: Tensor) -> Tensor:
    """Token ids [R] int64. logits float32. fed_R: the last token that was fed, which the host may not know yet."""
    logits_RV = _penalised(logits_RV, rows, fed_R)
    device = logits_RV.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    greedy_R = torch.tensor([row.params.temperature == 0 for row in rows], device=device)
    cold_R1 = column([row.params.temperature or 1.0 for row in rows])
    ranked_RV, ids_RV = (logits_RV / cold_R1).sort(dim=-1, descending=True)
    vocabulary = logits_RV.shape[-1]
    top_k_R1 = column([row.params.top_k or vocabulary for row in rows])
    ranked_RV = ranked_RV.masked_fill(torch.arange(vocabulary, device=device) >= top_k_R1, -torch.inf)
    p_RV = ranked_RV.softmax(-1)
    before_RV = p_RV.cumsum(-1) - p_RV
    top_p_R1 = column([row.params.top_p for row in rows])
    min_p_R1 = column([row.params.min_p for row in rows])
    dropped_RV = ((before_RV >= top_p_R1) & (top_p_R1 < 1)) | (p_RV < min_p_R1 * p_RV[:, :1])
    noise_RV = gumbel(ids_RV, [row.seed for row in rows], [row.position for row in rows])
    best_R1 = (ranked_RV.masked_fill(dropped_RV, -torch.inf) + noise_RV).argmax(-1, keepdim=True)
    return torch.where(greedy_R, logits_RV.argmax(-1), ids_RV.gather(1, best_R1)[:, 0])


def _penalised(logits_RV: Tensor, rows: list[Choice], fed_R: Tensor) -> Tensor:
    """Logits of tokens that were there before, in the prompt too, divided by the penalty (multiplied if negative).

    Keskar et al. 2019, arXiv:1909.05858, with transformers' treatment of negative logits.
    """
    if all(row.params.repetition_penalty == 1 for row in rows):
        return logits_RV
    logits_RV = logits_RV.clone()
    for index, row in enumerate(rows):
        if row.params.repetition_penalty != 1:
            ids = torch.tensor(row.history, dtype=torch.int64, device=logits_RV.device)
            ids = torch.cat((ids, fed_R[index : index + 1])).unique()
            own = logits_RV[index, ids]
            penalty = row.params.repetition_penalty
            logits_RV[index, ids] = torch.where(own > 0, own / penalty, own * penalty)
    return logits_RV


def gumbel(ids_RV: Tensor, seeds: list[int], positions: list[int]) -> Tensor:
    """Standard Gumbel noise float32 [R, V] for token ids, by a counter-based hash (murmur3's finalizer, twice)."""
    words = [
        [seed & MASK, (seed >> 32) & MASK, position & MASK] for seed, position in zip(seeds, positions, strict=True)
    ]
    keys_RW = torch.tensor(words, dtype=torch.int64, device=ids_RV.device)
    state_RV = ids_RV
    for word in range(keys_RW.shape[1]):
        state_RV = _mixed((state_RV + keys_RW[:, word : word + 1] * 0x9E3779B1) & MASK)
    # 24 bits, in the middle of their interval: never 0 or 1
    uniform_RV = ((state_RV >> 8).to(torch.float32) + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform_RV))


def _mixed(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def logprobs_of(logits_RV: Tensor, tokens: list[int], count: int) -> list[dict[int, float]]:
    """A row each: {token id: natural log-probability} of the chosen token first, then of the `count` most likely.

    Of the model's own distribution: before penalties and temperature.
    """
    log_p_RV = logits_RV.float().log_softmax(-1)
    chosen = log_p_RV[torch.arange(len(tokens)), torch.tensor(tokens, device=log_p_RV.device)].tolist()
    values_RC, ids_RC = log_p_RV.topk(count, dim=-1)
    rows = []
    for token, own, values, ids in zip(tokens, chosen, values_RC.tolist(), ids_RC.tolist(), strict=True):
        rows.append({token: own} | dict(zip(ids, values, strict=True)))
    return rows
